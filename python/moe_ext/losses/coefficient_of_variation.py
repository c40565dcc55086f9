"""Losses that are the squared coefficient of variation of something the experts should have equally much of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import check_sequences, checked_ids, checked_logits, checked_mask, is_counted, without
from moe_ext.losses._reductions import count_over_group, mean_over_sequences, per_sequence, sum_over_group
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


def squared_coefficient_of_variation(x: Tensor, *, correction: int = 0) -> Tensor:
    """`var(x) / (mean(x)^2 + 1e-10)` over the last dimension: 0 if all are equal, and the same for every scale of x.

    Shazeer et al. 2017, arXiv:1701.06538, eq. 7. Gradient with n numbers of mean m and variance v, population:
    `2 / (n m^2) (x_i - m - v / m)`.

    Args:
        x: [..., n], any float dtype; float32 arithmetic (float64 for float64 x).
        correction: 0 for the population variance (Tensor2Tensor, V-MoE), 1 for the unbiased one (most PyTorch code,
            Mod-Squad), n / (n - 1) times larger.

    Returns:
        [...]; 0 for n = 1.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: `correction` is not 0 or 1, or x has no number.
    """
    function = "losses.squared_coefficient_of_variation"
    _checks.is_tensor(function, "x", x, _checks.DATA_DTYPES)
    _checks.is_int(function, "correction", correction, low=0, high=1)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"moe_ext.{function}: x must be [..., n] with n > 0, got shape {tuple(x.shape)}")
    x = wide(x)
    # One number does not vary, and the unbiased variance would divide by zero.
    variance = x.var(dim=-1, correction=correction if x.shape[-1] > 1 else 0)
    return variance / (x.mean(dim=-1).square() + 1e-10)


def importance_loss(
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    *,
    correction: int = 0,
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """CV^2 of the importance, `importance_e = sum_t G(x_t)_e`, where G is zero for the experts not chosen.

    Shazeer et al. 2017, arXiv:1701.06538, eq. 6-7 (coefficient 0.1 there). The gradient flows through the weights.
    0 if and only if all experts are equally important; the same for every scale of the weights.

    Args:
        topk_weights: [T, K], any float dtype; float32 arithmetic (float64 for float64 weights).
        topk_ids: [T, K] int32 or int64; sentinels (< 0 or >= E) add nothing.
        num_experts: E.
        correction: of the variance, see `squared_coefficient_of_variation`.
        num_sequences: B; the mean over B equally long sequences of the loss of each, without empty ones.
        token_mask: [T] bool, False for tokens to leave out (padding).
        group: add up the importance over the ranks of this process group. Every rank gets the global loss, and the
            mean over ranks of the gradients is its gradient.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.importance_loss"
    _checks.is_tensor(function, "topk_weights", topk_weights, _checks.DATA_DTYPES)
    _checks.has_rank(function, "topk_weights", topk_weights, "num_tokens, top_k")
    num_tokens, top_k = topk_weights.shape
    checked_ids(function, topk_ids, num_tokens)
    _checks.has_shape(function, "topk_ids", topk_ids, "num_tokens, top_k", (num_tokens, top_k))
    _checks.is_int(function, "num_experts", num_experts, low=1)
    check_sequences(function, num_tokens, num_sequences)
    token_mask = checked_mask(function, token_mask, num_tokens)

    is_expert = is_counted(topk_ids, num_experts, token_mask)
    weights = wide(topk_weights).masked_fill(~is_expert, 0)
    ids = topk_ids.long().masked_fill(~is_expert, 0)
    # Token by token first: added to [E] at once, the order of the additions, hence the last bits, would be anyone's.
    gates = weights.new_zeros(num_tokens, num_experts).scatter_add(1, ids, weights)
    importance = per_sequence(gates, num_sequences)
    return mean_squared_variation(importance, is_expert.any(dim=1), correction, group)


def soft_importance_loss(
    router_logits: Tensor,
    *,
    correction: int = 0,
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """CV^2 of the importance with the probabilities of all experts, `importance_e = sum_t softmax(z_t)_e`.

    V-MoE, arXiv:2106.05974, appendix A. With the logits of a gate over shared experts it is the balance loss of
    shared experts. The gradient flows through the softmax.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        correction, num_sequences, token_mask, group: as in `importance_loss`.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.soft_importance_loss"
    logits = checked_logits(function, router_logits)
    check_sequences(function, logits.shape[0], num_sequences)
    token_mask = checked_mask(function, token_mask, logits.shape[0])
    counted = logits.new_ones(logits.shape[0], dtype=torch.bool) if token_mask is None else token_mask
    importance = per_sequence(without(without(logits, counted).softmax(dim=-1), counted), num_sequences)
    return mean_squared_variation(importance, counted, correction, group)


def mean_squared_variation(load: Tensor, counted: Tensor, correction: int, group: ProcessGroup | None) -> Tensor:
    """Load [B, E] and counted [T] -> the mean over sequences of CV^2."""
    load = sum_over_group(load, group)
    num_tokens = count_over_group(per_sequence(counted.to(load.dtype), load.shape[0]), group)
    return mean_over_sequences(squared_coefficient_of_variation(load, correction=correction), num_tokens)
