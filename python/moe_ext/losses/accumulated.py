"""Losses of sums that are collected over several forward passes, such as those of an optimizer step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import checked_ids, checked_logits, checked_mask, is_counted, without
from moe_ext.losses._reductions import count_over_group, group_size, sum_over_group
from moe_ext.losses.coefficient_of_variation import squared_coefficient_of_variation
from moe_ext.losses.counts import expert_counts
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


class _Sums(NamedTuple):
    gates: Tensor
    """[E], of the weights."""
    probability: Tensor
    """[E], over tokens."""
    mean_probability: Tensor
    """[E], over forward passes of the mean over the tokens of each."""
    counts: Tensor
    """[E], of slots, in the dtype of the probabilities."""
    squared_logsumexp: Tensor
    """Over tokens."""
    num_tokens: Tensor


class AccumulatedRouting:
    """Sums of a router over forward passes (tasks, accumulation steps), and the losses of Mod-Squad made of them.

    `add` once per forward pass, the losses once per step, then `reset`. The sums keep their autograd graph until
    `reset`. Mod-Squad, arXiv:2212.08066, as in its public code; the losses have no coefficient. With a process group
    every rank gets the loss of the sums over its ranks, and the mean over ranks of the gradients is its gradient.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        _checks.is_int("losses.AccumulatedRouting", "num_experts", num_experts, low=1)
        self.num_experts = num_experts
        self._sums: _Sums | None = None

    def add(
        self, router_logits: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, token_mask: Tensor | None = None
    ) -> None:
        """Count a forward pass.

        Args:
            router_logits: [T, E], any float dtype. topk_weights: [T, K]. topk_ids: [T, K] int32 or int64; sentinels
                (< 0 or >= E) are not counted, and a token with no expert at all leaves all sums.
            token_mask: [T] bool, False for tokens to leave out (padding).

        Raises:
            TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
        """
        function = "losses.AccumulatedRouting.add"
        logits = checked_logits(function, router_logits)
        num_tokens = logits.shape[0]
        _checks.has_shape(function, "router_logits", logits, "num_tokens, num_experts", (num_tokens, self.num_experts))
        topk_ids = checked_ids(function, topk_ids, num_tokens)
        _checks.is_tensor(function, "topk_weights", topk_weights, _checks.DATA_DTYPES)
        _checks.has_shape(function, "topk_weights", topk_weights, "num_tokens, top_k", topk_ids.shape)
        token_mask = checked_mask(function, token_mask, num_tokens)
        is_expert = is_counted(topk_ids, self.num_experts, token_mask)
        counted = is_expert.any(dim=1)
        logits, tokens = without(logits, counted), counted.to(logits.dtype)
        weights = wide(topk_weights).to(logits.dtype).masked_fill(~is_expert, 0)
        gates = torch.zeros_like(logits).scatter_add(1, topk_ids.long().masked_fill(~is_expert, 0), weights)
        probability = (logits.softmax(dim=-1) * tokens[:, None]).sum(0)
        num_counted = tokens.sum()
        sums = _Sums(
            gates.sum(0),
            probability,
            probability / num_counted.clamp(min=1),
            expert_counts(topk_ids, self.num_experts, token_mask=token_mask)[0].to(logits.dtype),
            (logits.logsumexp(dim=-1).square() * tokens).sum(),
            num_counted,
        )
        before = self._sums
        self._sums = sums if before is None else _Sums(*(a + b for a, b in zip(before, sums, strict=True)))

    def importance_loss(self, *, correction: int = 1, group: ProcessGroup | None = None) -> Tensor:
        """CV^2 of the weights summed per expert; see `importance_loss`. Gradient through the weights.

        Args:
            correction: 1 for the unbiased variance (as in Mod-Squad), 0 for that of the population.
            group: the sums over the ranks of this process group.
        """
        gates = sum_over_group(self._added().gates, group)
        return squared_coefficient_of_variation(gates / _total(gates), correction=correction)

    def load_balancing_loss(self, *, group: ProcessGroup | None = None) -> Tensor:
        """`E sum_e P_e F_e`, both divided by their sums; see `load_balancing_loss`. Balance gives 1."""
        sums = self._added()
        probability, counts = sum_over_group(sums.probability, group), count_over_group(sums.counts, group)
        return self.num_experts * (probability / _total(probability) * (counts / _total(counts))).sum()

    def router_z_loss(self, *, group: ProcessGroup | None = None) -> Tensor:
        """Mean over all tokens of the squared logsumexp; see `router_z_loss`."""
        sums = self._added()
        num_tokens = count_over_group(sums.num_tokens, group)
        return sum_over_group(sums.squared_logsumexp, group) / num_tokens.clamp(min=1)

    def topk_probability_loss(self, limit: int, *, group: ProcessGroup | None = None) -> Tensor:
        """`topk_probability_loss` of the sum over forward passes of the mean probabilities of each.

        Args:
            limit: how many experts go free, 0..E.
            group: the mean of that sum over the ranks of this process group. Forward passes count alike, and so do
                ranks, however many tokens they have.
        """
        mass = sum_over_group(self._added().mean_probability, group) / group_size(group)
        return topk_probability_loss(mass, limit)

    def reset(self) -> None:
        """Begin anew."""
        self._sums = None

    def _added(self) -> _Sums:
        if self._sums is None:
            raise RuntimeError("moe_ext.losses.AccumulatedRouting: nothing was added since the last reset()")
        return self._sums


def topk_probability_loss(probability: Tensor, limit: int) -> Tensor:
    """`sum of a_e^2 over the experts outside the `limit` largest a`: squeezes out the experts that are little used.

    The top-k loss in the code of Mod-Squad (arXiv:2212.08066), there with `limit >= K`. Gradient `2 a_e` outside the
    limit, 0 inside. Equal numbers: the lower index is inside.

    Args:
        probability: a [E], any float dtype; float32 arithmetic (float64 for float64 input).
        limit: how many experts go free, 0..E.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: wrong shape or limit.
    """
    function = "losses.topk_probability_loss"
    _checks.is_tensor(function, "probability", probability, _checks.DATA_DTYPES)
    _checks.has_rank(function, "probability", probability, "num_experts")
    _checks.is_int(function, "limit", limit, low=0, high=probability.shape[0], why=" (num_experts)")
    return wide(probability).sort(descending=True, stable=True).values[limit:].square().sum()


def _total(x: Tensor) -> Tensor:
    return x.sum().clamp(min=torch.finfo(x.dtype).tiny)
