"""expert_choice: scores to the tokens that each expert chooses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._library import fake, raw
from .types import ExpertChoices


def expert_choice(
    scores: Tensor,
    capacity: int,
    *,
    num_groups: int = 1,
    token_mask: Tensor | None = None,
    max_experts_per_token: int | None = None,
) -> ExpertChoices:
    """Each expert chooses the ``capacity`` tokens that score best with it (Zhou et al. 2022, arXiv:2202.09368).

    Larger scores first, equal ones by the lower token; NaN ranks above +inf, as in :func:`moe_ext.route`. A score of
    -inf is never chosen, so pairs can be forbidden by it. Every expert has the same load by construction, and a token
    has from none to all of the experts. The choice looks at all tokens of a group, later ones included.

    Not differentiable: take the weights from the scores at the ids.

    Args:
        scores: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or float64; the softmax over experts in the
            paper.
        capacity: C, tokens per expert and group, 0 up to the tokens of a group.
        num_groups: G equal groups of consecutive tokens, each chosen from on its own: the sequences of a batch. Must
            divide num_tokens.
        token_mask: ``[num_tokens]`` bool, False for tokens that nobody may choose (padding).
        max_experts_per_token: the width K of ``topk_ids``, 1..num_experts; None is num_experts. If more experts chose
            a token, those with its best scores stay there (``token_ids`` has all).

    Returns:
        :class:`ExpertChoices`, on the device of ``scores``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    name = "expert_choice"
    _checks.is_tensor(name, "scores", scores, _checks.DATA_DTYPES)
    _checks.has_rank(name, "scores", scores, "num_tokens, num_experts")
    num_tokens, num_experts = scores.shape
    _has_experts(name, "scores", num_experts)
    _checks.is_int(name, "num_groups", num_groups, low=1)
    if num_tokens % num_groups != 0:
        raise ValueError(f"moe_ext.{name}: num_groups must divide num_tokens = {num_tokens}, got {num_groups}")
    _checks.is_int(name, "capacity", capacity, low=0, high=num_tokens // num_groups, why=" (the tokens of a group)")
    if max_experts_per_token is None:
        max_experts_per_token = num_experts
    _checks.is_int(name, "max_experts_per_token", max_experts_per_token, low=1, high=num_experts, why=" (num_experts)")
    _is_mask(name, token_mask, scores, "scores")
    return ExpertChoices(*_expert_choice(_wide(scores), capacity, num_groups, token_mask, max_experts_per_token))


def _has_experts(name: str, argument: str, num_experts: int) -> None:
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: {argument} must have at least one expert, got num_experts 0")


def _is_mask(name: str, token_mask: Any, scores: Tensor, scores_name: str) -> None:
    if token_mask is None:
        return
    _checks.is_tensor(name, "token_mask", token_mask, (torch.bool,))
    _checks.has_shape(name, "token_mask", token_mask, "num_tokens", (scores.shape[0],))
    _checks.same_device(name, "token_mask", token_mask, scores_name, scores)


def _wide(scores: Tensor) -> Tensor:
    """In the dtype that the kernels take, and without a gradient: there is none."""
    scores = scores.detach()
    return scores if scores.dtype == torch.float64 else scores.float()


@fake("expert_choice")
def _expert_choice_fake(
    scores: Tensor, capacity: int, num_groups: int, token_mask: Tensor | None, max_experts_per_token: int
) -> tuple[Tensor, Tensor]:
    num_tokens, num_experts = scores.shape
    return (
        scores.new_empty((num_groups, num_experts, capacity), dtype=torch.int32),
        scores.new_empty((num_tokens, max_experts_per_token), dtype=torch.int32),
    )


_expert_choice = raw("expert_choice")
