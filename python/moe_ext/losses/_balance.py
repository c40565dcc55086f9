"""The two sides of every balance loss: how often an expert was chosen, and the mean probability it was given."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import (
    SCORES,
    check_sequences,
    checked_ids,
    checked_logits,
    checked_mask,
    is_counted,
    probabilities,
    raw_scores,
    without,
)
from moe_ext.losses._reductions import count_over_group, group_size, per_sequence
from moe_ext.losses.counts import expert_counts
from moe_ext.ops import _checks, route

Score = Literal["softmax", "sigmoid", "sqrtsoftplus"]
Count = Literal["slots", "first", "tokens", "unbiased"]
Convention = Literal["share", "per_token", "load", "gshard"]

COUNTS = ("slots", "first", "tokens", "unbiased")
CONVENTIONS = ("share", "per_token", "load", "gshard")


class Balance(NamedTuple):
    """Per sequence, over the ranks of the group."""

    topk_ids: Tensor
    """[T, k], the ids that were counted; those of left-out tokens are -1."""
    counts: Tensor
    """[B, E], in the dtype of the probabilities."""
    probability: Tensor
    """[B, E], mean over tokens. The only one with a gradient."""
    num_tokens: Tensor
    """[B], how many tokens were not left out."""

    def load(self, convention: str) -> Tensor:
        """f [B, E]; see `load_balancing_loss`."""
        num_experts = self.counts.shape[1]
        if convention == "load":
            return self.counts * num_experts / self.counts.sum(1, keepdim=True).clamp(min=1)
        per_token = self.counts / self.num_tokens.clamp(min=1)[:, None]
        if convention == "gshard":
            return per_token / num_experts
        return per_token * (num_experts if convention == "per_token" else num_experts / self.topk_ids.shape[1])


def measure(
    function: str,
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    score: str = "softmax",
    normalize: bool = True,
    count: str = "slots",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Balance:
    """Checks the arguments, which `load_balancing_loss` describes, and measures the balance."""
    _checks.is_choice(function, "score", score, SCORES)
    _checks.is_choice(function, "count", count, COUNTS)
    logits = checked_logits(function, router_logits)
    num_tokens, num_experts = logits.shape
    topk_ids = checked_ids(function, topk_ids, num_tokens)
    check_sequences(function, num_tokens, num_sequences)
    token_mask = checked_mask(function, token_mask, num_tokens)

    counted = is_counted(topk_ids, num_experts, token_mask).any(dim=1)
    logits = without(logits, counted)
    if count == "first":
        topk_ids = topk_ids[:, :1]
    elif count == "tokens":
        topk_ids = _once_per_token(topk_ids)
    elif count == "unbiased":
        topk_ids = route(logits.detach(), topk_ids.shape[1], score="none").topk_ids
    topk_ids = topk_ids.masked_fill(~counted[:, None], -1)

    scores = probabilities(logits, score) if normalize else raw_scores(logits, score)
    weight = counted.to(scores.dtype)
    tokens = count_over_group(per_sequence(weight, num_sequences), group)
    # Of this rank alone, scaled so that the mean over ranks is the mean over all tokens.
    probability = per_sequence(scores * weight[:, None], num_sequences) * group_size(group)
    counts = expert_counts(topk_ids, num_experts, num_sequences, group=group).to(scores.dtype)
    return Balance(topk_ids, counts, probability / tokens.clamp(min=1)[:, None], tokens)


def _once_per_token(topk_ids: Tensor) -> Tensor:
    """An expert that a token chose twice keeps the first of its slots."""
    slot = torch.arange(topk_ids.shape[1], device=topk_ids.device)
    again = (topk_ids[:, :, None] == topk_ids[:, None, :]) & (slot[:, None] > slot[None, :])
    return topk_ids.masked_fill(again.any(dim=2), -1)
