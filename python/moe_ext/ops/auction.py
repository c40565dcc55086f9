"""auction: scores to an assignment with the same number of tokens for each expert."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._library import fake, raw
from .expert_choice import _has_experts, _is_mask, _wide


def auction(scores: Tensor, *, token_mask: Tensor | None = None, max_rounds: int = 1000) -> Tensor:
    """One expert for each token, the same number of tokens for each expert, and nearly the largest sum of scores.

    The balanced assignment of BASE layers (Lewis et al. 2021, arXiv:2103.16716, section 3.1): an expert gets at most
    ``ceil(num_tokens / num_experts)`` tokens. It is found by an auction (Bertsekas 1992): tokens without an expert bid
    for the one that they profit most from, experts keep the highest bids and raise their price. It ends within
    ``num_tokens * epsilon`` of the best sum, where epsilon is a fiftieth of the range of the scores, at least 1e-4.
    All tokens bid at once and equal bids go to the lower token, so the result is the same on every device and for any
    number of threads. Not differentiable.

    Args:
        scores: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or float64. Scores that are not finite count
            as the lowest finite one.
        token_mask: ``[num_tokens]`` bool, False for tokens to leave out (padding); num_tokens above is the number of
            the others.
        max_rounds: tokens that still have no expert after so many rounds take, in order, the best one that has room:
            balance is kept, the bound on the sum is not.

    Returns:
        ``[num_tokens]`` int32, the expert of each token, -1 for tokens left out.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    _checks.is_tensor("auction", "scores", scores, _checks.DATA_DTYPES)
    _checks.has_rank("auction", "scores", scores, "num_tokens, num_experts")
    _has_experts("auction", "scores", scores.shape[1])
    _is_mask("auction", token_mask, scores, "scores")
    _checks.is_int("auction", "max_rounds", max_rounds, low=0)
    result: Tensor = _auction(_wide(scores), token_mask, max_rounds)
    return result


@fake("auction")
def _auction_fake(scores: Tensor, token_mask: Tensor | None, max_rounds: int) -> Tensor:
    return scores.new_empty((scores.shape[0],), dtype=torch.int32)


_auction = raw("auction")
