"""Balance and z losses from the sums that `moe_ext.route_with_statistics` forms while it routes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._reductions import count_over_group, group_size
from moe_ext.ops import RoutingWithStatistics, _checks


class StatisticsLosses(NamedTuple):
    """Scalars in float32 (float64 for float64 logits), without coefficients."""

    load_balancing: Tensor
    router_z: Tensor


def losses_from_statistics(
    routing: RoutingWithStatistics,
    *,
    convention: Literal["share", "per_token"] = "share",
    group: ProcessGroup | None = None,
) -> StatisticsLosses:
    """`load_balancing_loss` and `router_z_loss` of a routing, without any [T, E] tensor.

    With n tokens that chose an expert, `load_balancing = E / (K n^2) sum_e expert_counts_e score_sums_e` (Switch
    Transformer, arXiv:2101.03961, eq. 4; K times that for "per_token") and `router_z = z_sum / n` (ST-MoE,
    arXiv:2202.08906, eq. 5). Equal to the other two functions called with `routing.topk_ids` and with tokens without
    an expert masked. The gradient flows through `score_sums` and `z_sum`, and backward keeps nothing but what
    `route_with_statistics` keeps, the logits and the ids.

    To leave tokens out (padding), route them to nobody: logits of -inf and `nonfinite="sanitize"`. For a loss per
    sequence, route each sequence by itself.

    Args:
        routing: what `moe_ext.route_with_statistics` returned: topk_ids [T, K], score_sums [E], expert_counts [E],
            z_sum [].
        convention: "share" or "per_token", see `load_balancing_loss`.
        group: count over the ranks of this process group, see `load_balancing_loss` and `router_z_loss`.

    Raises:
        TypeError: `routing` is something else. ValueError: unknown convention.
    """
    function = "losses.losses_from_statistics"
    if not isinstance(routing, RoutingWithStatistics):
        raise TypeError(
            f"moe_ext.{function}: routing must be what moe_ext.route_with_statistics returns, "
            f"got {type(routing).__name__}"
        )
    _checks.is_choice(function, "convention", convention, ("share", "per_token"))
    _, topk_ids, score_sums, expert_counts, z_sum = routing
    dtype = score_sums.dtype
    num_tokens = count_over_group((topk_ids >= 0).any(dim=1).sum(), group).to(dtype)
    counts = count_over_group(expert_counts, group).to(dtype)
    tokens = num_tokens.where(num_tokens > 0, 1)

    slots_per_token = topk_ids.shape[1] if convention == "share" else 1
    load = counts * counts.shape[0] / (slots_per_token * tokens)
    ranks = group_size(group)
    return StatisticsLosses((load / tokens * ranks * score_sums).sum(), z_sum * (ranks / tokens))
