"""Tables from an id (of a token, a position, a pair of tokens) to its expert, fixed before training.

Roller et al. 2021, "Hash layers for large sparse models", arXiv:2106.04426, section 3. They return int32 [V],
in which `moe_ext.routing.HashSelection` looks experts up.
"""

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_ext.ops import _checks


def random_table(num_ids: int, num_experts: int, *, generator: torch.Generator | None = None) -> Tensor:
    """An expert for each of V ids, uniformly at random: int32 [V].

    Raises:
        ValueError: `num_ids` or `num_experts` below 1.
    """
    _checks.is_int("random_table", "num_ids", num_ids, low=1)
    _checks.is_int("random_table", "num_experts", num_experts, low=1)
    return torch.randint(num_experts, (num_ids,), dtype=torch.int32, generator=generator)


def balanced_table(frequencies: Tensor, num_experts: int) -> Tensor:
    """Deal the ids out from the most frequent to the rarest, each to the expert with the least load so far.

    Args:
        frequencies: [V], how often each id occurs, any integer or float dtype, not negative. Ids that occur equally
            often are taken in their order.
        num_experts: E. Of experts with the same load the first takes the id.

    Returns:
        int32 [V] on the CPU.

    Raises:
        TypeError, ValueError: frequencies that are no [V], negative or NaN; `num_experts` below 1.
    """
    _check_rank("balanced_table", "frequencies", frequencies, 1)
    _checks.is_int("balanced_table", "num_experts", num_experts, low=1)
    # A negative (or NaN) frequency would make an expert ever more attractive.
    if not bool((frequencies >= 0).all()):
        raise ValueError("moe_ext.balanced_table: frequencies must not be negative or NaN")
    order = torch.sort(frequencies.cpu(), descending=True, stable=True)
    table = torch.empty(frequencies.shape[0], dtype=torch.int32)
    loads = [(0, expert) for expert in range(num_experts)]
    experts = []
    for frequency in order.values.tolist():
        load, expert = loads[0]
        heapq.heapreplace(loads, (load + frequency, expert))
        experts.append(expert)
    table[order.indices] = torch.tensor(experts, dtype=torch.int32)
    return table


def clustered_table(
    embeddings: Tensor, num_experts: int, *, iterations: int = 20, generator: torch.Generator | None = None
) -> Tensor:
    """Similar ids to the same expert: the clusters that k-means finds among the embeddings.

    Args:
        embeddings: [V, D] float, one row per id, with V >= E.
        num_experts: E, the number of clusters. They are as large as they happen to be.
        iterations: of k-means at most; it ends earlier when no id changes its cluster.
        generator: chooses the first centres; of the CPU, wherever the embeddings are.

    Returns:
        int32 [V] on the device of `embeddings`.

    Raises:
        TypeError, ValueError: embeddings that are no [V, D]; `num_experts` outside 1..V.
    """
    _check_rank("clustered_table", "embeddings", embeddings, 2)
    _checks.is_int("clustered_table", "num_experts", num_experts, low=1, high=embeddings.shape[0], why=" (ids)")
    return _k_means(embeddings, num_experts, iterations, generator).int()


def dispersed_table(
    embeddings: Tensor,
    num_experts: int,
    *,
    num_clusters: int | None = None,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Similar ids to different experts: the ids of each cluster are dealt out to the experts in turn.

    The experts get equally many ids, give or take one, and so does any cluster's part of each.

    Args:
        embeddings, num_experts, iterations, generator: as for `clustered_table`.
        num_clusters: None for `num_experts`.

    Raises:
        TypeError, ValueError: as `clustered_table`, but V may be below E; `num_clusters` outside 1..V.
    """
    _check_rank("dispersed_table", "embeddings", embeddings, 2)
    num_ids = embeddings.shape[0]
    _checks.is_int("dispersed_table", "num_experts", num_experts, low=1)
    num_clusters = min(num_experts, num_ids) if num_clusters is None else num_clusters
    _checks.is_int("dispersed_table", "num_clusters", num_clusters, low=1, high=num_ids, why=" (ids)")
    order = torch.sort(_k_means(embeddings, num_clusters, iterations, generator), stable=True).indices
    table = torch.empty_like(order)
    table[order] = torch.arange(num_ids, device=order.device) % num_experts
    return table.int()


def multi_hash_table(tables: Sequence[Tensor], num_experts: int) -> Tensor:
    """Several tables as one for MultiHash: int32 [V, M] with column m in m * E .. m * E + E - 1.

    MultiHash cuts the hidden units of each of E experts into M segments and lets a hash of its own choose each
    segment. The output of a feed-forward network is the sum over its hidden units, so that is a layer of M * E experts
    of I / M hidden units, of which a token gets one for each m, all with weight 1.

    Args:
        tables: M tables [V], each with values in 0..E-1. num_experts: E.

    Raises:
        TypeError, ValueError: no tables, one that is no [V], or one with a value out of range.
    """
    if not tables:
        raise ValueError("moe_ext.multi_hash_table: tables must hold at least one table, got none")
    for table in tables:
        _check_rank("multi_hash_table", "tables", table, 1)
        # Another value would name an expert of a neighbouring segment.
        if not bool(((table >= 0) & (table < num_experts)).all()):
            raise ValueError(
                f"moe_ext.multi_hash_table: tables must hold values in 0..{num_experts - 1} (num_experts - 1)"
            )
    return torch.stack([table.int() + m * num_experts for m, table in enumerate(tables)], dim=1)


@torch.no_grad()
def _k_means(points: Tensor, num_clusters: int, iterations: int, generator: torch.Generator | None) -> Tensor:
    """[V] int64: the cluster of each point after Lloyd's iterations from k-means++ centres."""
    points = points.double()
    num_points = points.shape[0]
    first = torch.randint(num_points, (1,), generator=generator).to(points.device)
    centres = points[first]
    nearest = (points - centres[0]).square().sum(1)
    for _ in range(num_clusters - 1):
        # A uniform draw from the cumulated distances; 1 - u lies in (0, 1], so no point with distance 0 is drawn
        # unless nothing else is left.
        cumulated = nearest.cumsum(0)
        u = 1 - torch.rand(1, generator=generator, dtype=torch.float64).to(points.device)
        chosen = torch.searchsorted(cumulated, u * cumulated[-1]).clamp(max=num_points - 1)
        centres = torch.cat([centres, points[chosen]])
        nearest = torch.minimum(nearest, (points - centres[-1]).square().sum(1))

    cluster = _nearest_centre(points, centres)
    for _ in range(iterations):
        size = torch.bincount(cluster, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        # A centre that lost all its points stays where it is.
        centres = torch.where(size[:, None] > 0, sums / size[:, None].clamp(min=1), centres)
        before, cluster = cluster, _nearest_centre(points, centres)
        if torch.equal(cluster, before):
            break
    return cluster


def _nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    # |p - c|^2 without |p|^2, which is the same for every centre.
    return torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2).argmin(1)


def _check_rank(function: str, name: str, value: Tensor, rank: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"moe_ext.{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dim() != rank or value.shape[0] < 1:
        axes = "[V]" if rank == 1 else "[V, D]"
        raise ValueError(f"moe_ext.{function}: {name} must be {axes} with V >= 1, got shape {tuple(value.shape)}")
