"""What every loss does to its arguments first: check them, widen them, leave tokens out.

A token that is left out has its logits replaced by zeros before anything is computed from them: they may be NaN, and
zero times NaN would reach the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops._precision import wide

SCORES = ("softmax", "sigmoid", "sqrtsoftplus")


def checked_logits(function: str, value: Tensor, name: str = "router_logits") -> Tensor:
    """`value`, of shape [T, E] and a float dtype, widened."""
    _checks.is_tensor(function, name, value, _checks.DATA_DTYPES)
    _checks.has_rank(function, name, value, "num_tokens, num_experts")
    return wide(value)


def checked_ids(function: str, value: Tensor, num_tokens: int, name: str = "topk_ids") -> Tensor:
    """`value`, int32 or int64 of shape [T, K]."""
    _checks.is_tensor(function, name, value, _checks.ID_DTYPES)
    if value.dim() != 2 or value.shape[0] != num_tokens or value.shape[1] < 1:
        raise ValueError(
            f"moe_ext.{function}: {name} must be [{num_tokens}, top_k], a row per token, got shape {tuple(value.shape)}"
        )
    return value


def checked_mask(function: str, token_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """`token_mask` as [T]; it may come in any shape of T elements, such as [B, S]."""
    if token_mask is None:
        return None
    _checks.is_tensor(function, "token_mask", token_mask, (torch.bool,))
    if token_mask.numel() != num_tokens:
        raise ValueError(
            f"moe_ext.{function}: token_mask must have {num_tokens} elements, one per token, "
            f"got shape {tuple(token_mask.shape)}"
        )
    return token_mask.reshape(num_tokens)


def check_sequences(function: str, num_tokens: int, num_sequences: int) -> None:
    """T tokens make `num_sequences` sequences of equal length."""
    _checks.is_int(function, "num_sequences", num_sequences, low=1)
    if num_tokens % num_sequences:
        raise ValueError(
            f"moe_ext.{function}: {num_tokens} tokens do not make {num_sequences} sequences of equal length"
        )


def is_counted(ids: Tensor, limit: int, token_mask: Tensor | None) -> Tensor:
    """Bool of the shape of ids, [T] or [T, K]: those in 0..limit-1 of tokens that are not left out."""
    counted = (ids >= 0) & (ids < limit)
    if token_mask is None:
        return counted
    return counted & (token_mask[:, None] if ids.dim() == 2 else token_mask)


def without(x: Tensor, token_mask: Tensor | None) -> Tensor:
    """[T, N] with the rows of left-out tokens set to zero."""
    return x if token_mask is None else x.masked_fill(~token_mask[:, None], 0)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`. Not F.softplus: from 20 on it returns its input, which costs float64 half its digits."""
    return torch.logaddexp(x, torch.zeros_like(x))


def raw_scores(logits: Tensor, score: str) -> Tensor:
    """Softmax, sigmoid or sqrt(softplus) of the logits; only the first sums to one."""
    if score == "softmax":
        return logits.softmax(dim=-1)
    if score == "sigmoid":
        return logits.sigmoid()
    positive = softplus(logits)
    # The root has an infinite slope at 0, where softplus underflows to; the slope of the whole tends to 0 there.
    vanished = positive == 0
    return positive.masked_fill(vanished, 1).sqrt().masked_fill(vanished, 0)


def probabilities(logits: Tensor, score: str) -> Tensor:
    """The scores of each token, divided by their sum over the experts."""
    scores = raw_scores(logits, score)
    if score == "softmax":
        return scores
    # The smallest normal number only matters where every score of a token has underflowed to zero.
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
