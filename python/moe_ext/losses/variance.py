"""Experts in clusters: alike inside a cluster, different between clusters."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import checked_logits, checked_mask, without
from moe_ext.losses._reductions import mean_over_tokens
from moe_ext.ops import _checks


def cluster_variance_loss(
    router_logits: Tensor,
    num_clusters: int,
    *,
    separation: float = 1.0,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Mean over tokens of the variance of the probabilities inside clusters, minus that between clusters.

    The E experts are M clusters of N = E / M consecutive ones, m_c is the mean probability of a cluster:
    `mean_t [ mean_c mean_{e in c} N^2 (p_te - m_tc)^2 - separation * mean_c N^2 (m_tc - 1/E)^2 ]`.
    After the variance-based constraint of MoEC, arXiv:2207.09094: tokens of a kind should go to a cluster, and any
    expert of it will do. The factor N^2 keeps the scale for every size of clusters. The smallest value, `-separation *
    (M - 1) / M^2`, is reached by a token that is sure of its cluster and indifferent inside. Gradient through p.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        num_clusters: M, a divisor of E.
        separation: weight of the second variance; 0 leaves the first alone.
        token_mask: [T] bool, False for tokens to leave out (padding).
        group: the mean over the ranks of this process group, see `router_z_loss`.

    Returns:
        Scalar; 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes or clusters that do not fit.
    """
    function = "losses.cluster_variance_loss"
    logits = checked_logits(function, router_logits)
    num_experts = logits.shape[1]
    token_mask = checked_mask(function, token_mask, logits.shape[0])
    _checks.is_int(function, "num_clusters", num_clusters, low=1, high=num_experts, why=" (num_experts)")
    _checks.is_number(function, "separation", separation, low=0.0)
    if num_experts % num_clusters:
        raise ValueError(
            f"moe_ext.{function}: num_clusters must divide num_experts = {num_experts}, got {num_clusters}"
        )
    size = num_experts // num_clusters
    p = size * without(logits, token_mask).softmax(dim=-1).unflatten(-1, (num_clusters, size))
    mean = p.mean(-1, keepdim=True)
    # Not Tensor.var, which warns where there are no tokens.
    inside = (p - mean).square().mean((-1, -2))
    between = (mean - 1 / num_clusters).square().mean((-1, -2))
    return mean_over_tokens(inside - separation * between, token_mask, group)
