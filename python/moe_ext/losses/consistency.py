"""Two passes through randomly chosen experts should agree."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from moe_ext.losses._reductions import mean_over_tokens
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide

Reduction = Literal["sum", "mean"]


def consistency_loss(
    logits: Tensor,
    other_logits: Tensor,
    *,
    reduction: Reduction = "sum",
    token_mask: Tensor | None = None,
) -> Tensor:
    """`1/2 (KL(p || q) + KL(q || p)) = 1/2 sum_v (p_v - q_v) (log p_v - log q_v)` of each token.

    p and q are the softmaxes of the two logits. THOR, arXiv:2110.04260, section 3, where they are two passes with
    different random experts: `CE(p) + CE(q) + alpha * consistency`, alpha 1 to 5, with the cross entropies a caller
    has anyway. MoEBERT (arXiv:2204.07675) distils with the same divergence. Both sides get a gradient; symmetric; 0
    if and only if p = q.

    Args:
        logits, other_logits: [..., V], any float dtypes; float32 arithmetic (float64 for float64 logits). -inf in both
            (a vocabulary entry that is masked) adds nothing; in one only, the divergence is infinite.
        reduction: "sum" over tokens, or their "mean". Averaged over R ranks, the first is 1 / R of the sum over all
            tokens, the second the mean over all if the ranks have equally many.
        token_mask: [...] bool, False for tokens to leave out (padding).

    Returns:
        Scalar; 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: unknown reduction or shapes that do not fit.
    """
    function = "losses.consistency_loss"
    _checks.is_choice(function, "reduction", reduction, ("sum", "mean"))
    _checks.is_tensor(function, "logits", logits, _checks.DATA_DTYPES)
    _checks.is_tensor(function, "other_logits", other_logits, _checks.DATA_DTYPES)
    if logits.dim() == 0 or logits.shape != other_logits.shape:
        raise ValueError(
            f"moe_ext.{function}: other_logits must be [..., V] like logits, got shapes {tuple(logits.shape)} and "
            f"{tuple(other_logits.shape)}"
        )
    a = wide(logits)
    b = wide(other_logits).to(a.dtype)
    if token_mask is not None:
        _checks.is_tensor(function, "token_mask", token_mask, (torch.bool,))
        if token_mask.shape != a.shape[:-1]:
            raise ValueError(
                f"moe_ext.{function}: token_mask must be {tuple(a.shape[:-1])}, got shape {tuple(token_mask.shape)}"
            )
        a, b = a.masked_fill(~token_mask[..., None], 0), b.masked_fill(~token_mask[..., None], 0)
    log_p, log_q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    absent = (log_p == -math.inf) & (log_q == -math.inf)
    # Before the difference: inf - inf would be NaN, in the gradient too.
    log_p, log_q = log_p.masked_fill(absent, 0), log_q.masked_fill(absent, 0)
    divergence = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    if reduction == "mean":
        return mean_over_tokens(divergence, token_mask)
    # Two equal rows of zeros, which is what became of those left out, do not diverge.
    return divergence.sum()
