"""Tensors of a part, the bytes it cannot avoid moving, and whether a result is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

NUM_GROUPS: Final = 8
TOPK_GROUPS: Final = 4
SCALE: Final = 2.5  # of DeepSeek-V3
# Relative error of what is compared with float64. Hugging Face rounds the weights to the dtype of the logits.
_TOLERANCE: Final = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


@dataclass(frozen=True)
class Sizes:
    """Of one part."""

    num_tokens: int
    num_experts: int
    top_k: int
    hidden_size: int


@dataclass(frozen=True)
class Tensors:
    """logits [T,E] (a leaf), bias [E] float32, grad_weights [T,K] float32; topk_weights [T,K] float32 and topk_ids
    [T,K] int32, what a router made of them; x [T,H] and rows [T*K,H]. Data is in `dtype`."""

    sizes: Sizes
    dtype: torch.dtype
    logits: Tensor = field(init=False)
    bias: Tensor = field(init=False)
    grad_weights: Tensor = field(init=False)
    topk_weights: Tensor = field(init=False)
    topk_ids: Tensor = field(init=False)
    x: Tensor = field(init=False)
    rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.randn(size, generator=generator).to(dtype)

        sizes = self.sizes
        values: dict[str, Tensor] = {
            "logits": normal(sizes.num_tokens, sizes.num_experts).requires_grad_(),
            "bias": 0.01 * normal(sizes.num_experts, dtype=torch.float32),
            "grad_weights": normal(sizes.num_tokens, sizes.top_k, dtype=torch.float32),
            "x": normal(sizes.num_tokens, sizes.hidden_size),
            "rows": normal(sizes.num_tokens * sizes.top_k, sizes.hidden_size),
        }
        top = values["logits"].detach().float().softmax(-1).topk(sizes.top_k)
        values["topk_weights"], values["topk_ids"] = top.values, top.indices.int()
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _scores(tensors: Tensors, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: a leaf of logits, the scores, and what experts are ranked by."""
    logits = tensors.logits.detach().double().requires_grad_()
    if not grouped:
        scores = logits.softmax(-1)
        return logits, scores, scores.detach()
    scores = logits.sigmoid()
    rank = scores.detach() + tensors.bias.double()
    groups = rank.unflatten(1, (NUM_GROUPS, -1))
    best = groups.topk(2, dim=-1).values.sum(-1).topk(TOPK_GROUPS, dim=-1).indices
    kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter_(1, best, True)
    return logits, scores, groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Of all of `got`; the truth is float64."""
    return float((got.double() - truth).norm() / truth.norm())


def check_route(tensors: Tensors, grouped: bool, result: Any) -> float:
    """Largest relative error of (weights, ids) or (weights, ids, grad of logits). Experts may differ where they tie:
    it is what they are ranked by that must be the best."""
    topk_weights, topk_ids, *grads = result
    ids = topk_ids.long()
    logits, scores, rank = _scores(tensors, grouped)
    weights = scores.gather(1, ids)
    weights = weights / weights.sum(-1, keepdim=True) * (SCALE if grouped else 1.0)
    best = rank.topk(ids.size(1), dim=-1).values
    errors = [
        relative_error(rank.gather(1, ids).sort(descending=True).values, best),
        relative_error(topk_weights.detach(), weights.detach()),
    ]
    if grads:
        errors.append(relative_error(grads[0], torch.autograd.grad(weights, logits, tensors.grad_weights.double())[0]))
    return max(errors)


def _expert_order(tensors: Tensors) -> Tensor:
    """Slots by (expert, token, k)."""
    return tensors.topk_ids.flatten().long().sort(stable=True).indices


def check_permute(tensors: Tensors, result: Any) -> float:
    """0 if (offsets, row_to_slot, slot_to_row) are right, else 1. Offsets may lack the leading 0."""
    offsets, row_to_slot, slot_to_row = (t.flatten().long() for t in result)
    order = _expert_order(tensors)
    ends = torch.bincount(tensors.topk_ids.flatten().long(), minlength=tensors.sizes.num_experts).cumsum(0)
    right = torch.equal(offsets[-len(ends) :], ends) and torch.equal(row_to_slot, order)
    return 0.0 if right and torch.equal(slot_to_row[order], torch.arange(len(order))) else 1.0


def check_gather(tensors: Tensors, result: Any) -> float:
    """Rows are copies: 0 or 1."""
    token = _expert_order(tensors) // tensors.sizes.top_k
    return 0.0 if torch.equal(result, tensors.x[token]) else 1.0


def check_combine(tensors: Tensors, result: Any) -> float:
    """Relative error of y [T,H]."""
    order = _expert_order(tensors)
    y = torch.zeros(result.shape, dtype=torch.float64)
    weights = tensors.topk_weights.flatten()[order].double().unsqueeze(1)
    for part in torch.arange(len(order)).split(4096):  # no float64 copy of all rows
        y.index_add_(0, order[part] // tensors.sizes.top_k, weights[part] * tensors.rows[part].double())
    return relative_error(result, y)


def tolerance(tensors: Tensors) -> float:
    """Largest allowed error."""
    return _TOLERANCE[tensors.dtype]


@dataclass(frozen=True)
class Part:
    """`num_bytes(sizes, itemsize)`: what must be read and written once, int32 indices and float32 weights included.
    `check(tensors, result)`: the error of what a contender returned."""

    name: str
    num_bytes: Callable[[Sizes, int], int]
    check: Callable[[Tensors, Any], float]


def _route_bytes(sizes: Sizes, itemsize: int) -> int:
    return sizes.num_tokens * (sizes.num_experts * itemsize + 8 * sizes.top_k)


def _route_both_bytes(sizes: Sizes, itemsize: int) -> int:
    # Backward reads logits, ids and the gradient of the weights, and writes that of the logits.
    return _route_bytes(sizes, itemsize) + sizes.num_tokens * (2 * sizes.num_experts * itemsize + 8 * sizes.top_k)


def _permute_bytes(sizes: Sizes, itemsize: int) -> int:
    return 4 * (3 * sizes.num_tokens * sizes.top_k + sizes.num_experts + 1)


def _gather_bytes(sizes: Sizes, itemsize: int) -> int:
    return sizes.num_tokens * ((1 + sizes.top_k) * sizes.hidden_size * itemsize + 4 * sizes.top_k)


def _combine_bytes(sizes: Sizes, itemsize: int) -> int:
    return sizes.num_tokens * ((1 + sizes.top_k) * sizes.hidden_size * itemsize + 8 * sizes.top_k)


PARTS: Final = (
    Part("route softmax", _route_bytes, lambda t, r: check_route(t, False, r)),
    Part("route softmax fwdbwd", _route_both_bytes, lambda t, r: check_route(t, False, r)),
    Part("route grouped sigmoid", _route_bytes, lambda t, r: check_route(t, True, r)),
    Part("route grouped sigmoid fwdbwd", _route_both_bytes, lambda t, r: check_route(t, True, r)),
    Part("permute", _permute_bytes, check_permute),
    Part("gather_rows", _gather_bytes, check_gather),
    Part("permute + gather_rows", lambda s, i: _permute_bytes(s, i) + _gather_bytes(s, i), check_gather),
    Part("combine", _combine_bytes, check_combine),
)
