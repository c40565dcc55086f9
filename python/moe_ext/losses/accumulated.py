"""Losses of sums that are collected over several forward passes, such as those of an optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import checked_ids, checked_logits, checked_mask, without
from moe_ext.losses._reductions import count_over_group, group_size, sum_over_group
from moe_ext.losses.coefficient_of_variation import squared_coefficient_of_variation
from moe_ext.losses.counts import expert_counts
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


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
        self._sums: tuple[Tensor, ...] | None = None

    def add(
        self, router_logits: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, token_mask: Tensor | None = None
    ) -> None:
        """Count a forward pass.

        Args:
            router_logits: [T, E], any float dtype. topk_weights: [T, K]. topk_ids: [T, K] int32 or int64; sentinels
                (< 0 or >= E) are not counted.
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
        logits = without(logits, token_mask)
        tokens = logits.new_ones(num_tokens) if token_mask is None else token_mask.to(logits.dtype)
        is_expert = (topk_ids >= 0) & (topk_ids < self.num_experts)
        if token_mask is not None:
            is_expert = is_expert & token_mask[:, None]
        weights = wide(topk_weights).to(logits.dtype).masked_fill(~is_expert, 0)
        gates = torch.zeros_like(logits).scatter_add(1, topk_ids.long().masked_fill(~is_expert, 0), weights)
        probability = (logits.softmax(dim=-1) * tokens[:, None]).sum(0)
        num_counted = tokens.sum()
        sums = (
            gates.sum(0),
            probability,
            probability / num_counted.clamp(min=1),
            expert_counts(topk_ids, self.num_experts, token_mask=token_mask)[0].to(logits.dtype),
            (logits.logsumexp(dim=-1).square() * tokens).sum(),
            num_counted,
        )
        before = self._sums
        self._sums = sums if before is None else tuple(a + b for a, b in zip(before, sums, strict=True))

    def importance_loss(self, *, correction: int = 1, group: ProcessGroup | None = None) -> Tensor:
        """CV^2 of the weights summed per expert; see `importance_loss`. Gradient through the weights."""
        gates = sum_over_group(self._added()[0], group)
        return squared_coefficient_of_variation(gates / _total(gates), correction=correction)

    def load_balancing_loss(self, *, group: ProcessGroup | None = None) -> Tensor:
        """`E sum_e P_e F_e`, both divided by their sums; see `load_balancing_loss`. Balance gives 1."""
        _, probability, _, counts, _, _ = self._added()
        probability, counts = sum_over_group(probability, group), count_over_group(counts, group)
        return self.num_experts * (probability / _total(probability) * (counts / _total(counts))).sum()

    def router_z_loss(self, *, group: ProcessGroup | None = None) -> Tensor:
        """Mean over all tokens of the squared logsumexp; see `router_z_loss`."""
        _, _, _, _, z_sum, num_tokens = self._added()
        return sum_over_group(z_sum, group) / count_over_group(num_tokens, group).clamp(min=1)

    def topk_probability_loss(self, limit: int, *, group: ProcessGroup | None = None) -> Tensor:
        """`topk_probability_loss` of the sum over forward passes of the mean probabilities, that over ranks if any."""
        return topk_probability_loss(sum_over_group(self._added()[2], group) / group_size(group), limit)

    def reset(self) -> None:
        """Begin anew."""
        self._sums = None

    def _added(self) -> tuple[Tensor, ...]:
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
