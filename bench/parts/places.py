"""slot_positions, expert_histogram and noise: what they compute, the bytes that they cannot avoid moving, and who
computes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from bench.parts.contenders import Entry, moe_ext, others, ours
from bench.parts.work import Part, Sizes, Tensors
from bench.timing import Step


def _priority(tensors: Tensors) -> Tensor:
    return tensors.topk_weights[:, 0].contiguous()


# Places at an expert ----------------------------------------------------------------------------------------------


def _histogram_bytes(sizes: Sizes, itemsize: int) -> int:
    # Ids in, counts out, both int32.
    return 4 * (sizes.num_tokens * sizes.top_k + sizes.num_experts)


def _positions_bytes(sizes: Sizes, itemsize: int) -> int:
    # And places out.
    return _histogram_bytes(sizes, itemsize) + 4 * sizes.num_tokens * sizes.top_k


def _priority_bytes(sizes: Sizes, itemsize: int) -> int:
    # And priorities in.
    return _positions_bytes(sizes, itemsize) + 4 * sizes.num_tokens


def _places_by_sort(topk_ids: Tensor, num_experts: int, priority: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Places [T,K] and counts [E]: all first choices before all second ones, tokens by falling priority."""
    order = torch.arange(len(topk_ids)) if priority is None else priority.sort(descending=True, stable=True).indices
    experts, by_expert = topk_ids[order].T.flatten().sort(stable=True)
    counts = torch.bincount(experts, minlength=num_experts)
    place = torch.empty_like(by_expert)
    place[by_expert] = torch.arange(len(by_expert)) - (counts.cumsum(0) - counts)[experts]
    return torch.empty_like(topk_ids).index_copy_(0, order, place.view(topk_ids.size(1), -1).T.int()), counts


def _places_by_sum(topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """As GShard's algorithm has it."""
    visited = topk_ids.T.flatten().long().unsqueeze(1)
    one_hot = torch.zeros(len(visited), num_experts, dtype=torch.int32).scatter_(1, visited, 1)
    sums = one_hot.cumsum(0, dtype=torch.int32)
    return (sums.gather(1, visited) - 1).view(topk_ids.size(1), -1).T, sums[-1]


def _check_positions(tensors: Tensors, result: Any, by_priority: bool) -> float:
    """0 or 1."""
    priority = _priority(tensors) if by_priority else None
    positions, counts = _places_by_sort(tensors.topk_ids, tensors.sizes.num_experts, priority)
    return 0.0 if torch.equal(result[0], positions) and torch.equal(result[1].flatten().long(), counts) else 1.0


def _our_positions(tensors: Tensors) -> Step:
    return lambda: moe_ext().slot_positions(tensors.topk_ids, tensors.sizes.num_experts)


def _our_positions_by_priority(tensors: Tensors) -> Step:
    priority = _priority(tensors)
    return lambda: moe_ext().slot_positions(tensors.topk_ids, tensors.sizes.num_experts, priority=priority)


def _torch_positions_by_priority(tensors: Tensors) -> Step:
    return partial(_places_by_sort, tensors.topk_ids, tensors.sizes.num_experts, _priority(tensors))


def _of_ids(places: Callable[[Tensor, int], object]) -> Callable[[Tensors], Step]:
    return lambda tensors: partial(places, tensors.topk_ids, tensors.sizes.num_experts)


def _check_histogram(tensors: Tensors, result: Any) -> float:
    """0 or 1."""
    counts = torch.bincount(tensors.topk_ids.flatten(), minlength=tensors.sizes.num_experts)
    return 0.0 if torch.equal(result.flatten().long(), counts) else 1.0


def _our_histogram(tensors: Tensors) -> Step:
    return lambda: moe_ext().expert_histogram(tensors.topk_ids, tensors.sizes.num_experts)


def _torch_histogram(tensors: Tensors) -> Step:
    return lambda: torch.bincount(tensors.topk_ids.flatten(), minlength=tensors.sizes.num_experts)


# Noise ------------------------------------------------------------------------------------------------------------


def _noise_bytes(sizes: Sizes, itemsize: int) -> int:
    # A number for each logit, out.
    return 4 * sizes.num_tokens * sizes.num_experts


def _check_noise(kind: str, tensors: Tensors, result: Any) -> float:
    """0 or 1: the largest distance to the distribution function, which a right one passes once in 10^8 runs
    (Kolmogorov's limit, 2 exp(-2 n d^2))."""
    values = result.double().flatten()
    function = {
        "uniform": lambda x: x,
        "normal": torch.special.ndtr,
        "gumbel": lambda x: (-(-x).exp()).exp(),
    }[kind]
    steps = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    distance = (function(values.sort().values) - steps).abs().max() + 0.5 / len(values)
    return 0.0 if result.shape == tensors.logits.shape and distance < (9.6 / len(values)) ** 0.5 else 1.0


def _our_noise(kind: str, tensors: Tensors) -> Step:
    seed, shape = torch.zeros(1, dtype=torch.int64), tuple(tensors.logits.shape)
    return lambda: moe_ext().noise(seed, shape, kind)


_TORCH_NOISE: Final[dict[str, Callable[[torch.Size], Tensor]]] = {
    "uniform": torch.rand,
    "normal": torch.randn,
    "gumbel": lambda shape: -torch.empty(shape).exponential_().log(),
}


def _torch_noise(kind: str, tensors: Tensors) -> Step:
    return partial(_TORCH_NOISE[kind], tensors.logits.shape)


PARTS: Final = (
    Part("slot_positions", _positions_bytes, partial(_check_positions, by_priority=False)),
    Part("slot_positions by priority", _priority_bytes, partial(_check_positions, by_priority=True)),
    Part("expert_histogram", _histogram_bytes, _check_histogram),
    *(Part(f"noise {kind}", _noise_bytes, partial(_check_noise, kind)) for kind in _TORCH_NOISE),
)
ENTRIES: Final[dict[str, list[Entry]]] = {
    "slot_positions": [
        ours(_our_positions),
        others("torch_sort", _of_ids(_places_by_sort)),
        others("torch_cumsum", _of_ids(_places_by_sum)),
    ],
    "slot_positions by priority": [
        ours(_our_positions_by_priority),
        others("torch_sort", _torch_positions_by_priority),
    ],
    "expert_histogram": [ours(_our_histogram), others("torch_bincount", _torch_histogram)],
    **{
        f"noise {kind}": [ours(partial(_our_noise, kind)), others("torch", partial(_torch_noise, kind))]
        for kind in _TORCH_NOISE
    },
}
