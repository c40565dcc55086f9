"""slot_positions and expert_histogram: who comes first at an expert, and how many come."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._library import fake, raw
from .permute import DROP_ORDERS
from .types import SlotPositions


def slot_positions(
    topk_ids: Tensor,
    num_experts: int,
    *,
    order: str = "choice",
    priority: Tensor | None = None,
    group_size: int | None = None,
) -> SlotPositions:
    """Which place each slot has among the slots of its expert: below a capacity C, the slot is one of the first C.

    Slots are visited in an order, and the place of a slot is the number of slots of the same expert that were visited
    before it. Not differentiable; ids are integers and ``priority`` only orders.

    Args:
        topk_ids: ``[num_tokens, top_k]`` int32 or int64. An id below 0 or not below ``num_experts`` is a sentinel:
            it gets the place -1 and takes none.
        num_experts: number of experts, 1..2^31 - 2.
        order: "token": the tokens in order, each with all its choices. "choice": the first choices of all tokens, then
            the second choices, ... (GShard, arXiv:2006.16668, algorithm 1).
        priority: None, or floats that are compared in float32, larger first; equal ones stay in ``order``, and NaN
            counts as -inf. ``[num_tokens]``: wherever ``order`` visits tokens by number, they are visited by priority
            (V-MoE's batch prioritised routing, arXiv:2106.05974, section 4, with ``order="choice"``).
            ``[num_tokens, top_k]``: slots are visited by priority, whatever choice they are (dropping by score,
            DeepSeek-V2, arXiv:2405.04434, section 2.2.4; at random, with random numbers).
        group_size: places are counted in each group of this many consecutive tokens by itself; the last group may be
            shorter. None: all tokens are one group.

    Returns:
        ``SlotPositions(positions, counts)``: ``[num_tokens, top_k]`` and ``[num_groups, num_experts]``, both int32.
        Sizes depend on shapes alone, so nothing waits for the device.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device, ``num_experts`` or ``group_size`` out of range, an unknown ``order``.
    """
    name = "slot_positions"
    _check_ids(name, topk_ids, num_experts, group_size)
    _checks.is_choice(name, "order", order, DROP_ORDERS)
    if priority is not None:
        _checks.is_tensor(name, "priority", priority, _checks.DATA_DTYPES)
        if priority.ndim == 2:
            _checks.has_shape(name, "priority", priority, "num_tokens, top_k", topk_ids.shape)
        else:
            _checks.has_shape(name, "priority", priority, "num_tokens", topk_ids.shape[:1])
        _checks.same_device(name, "priority", priority, "topk_ids", topk_ids)
        priority = priority.detach().to(torch.float32)
    return SlotPositions(*_slot_positions(topk_ids, num_experts, order, priority, group_size))


def expert_histogram(topk_ids: Tensor, num_experts: int, *, group_size: int | None = None) -> Tensor:
    """How many slots each expert has: the ``counts`` of :func:`slot_positions` without the rest.

    Args:
        topk_ids: ``[num_tokens, top_k]`` int32 or int64; sentinels are not counted.
        num_experts: number of experts, 1..2^31 - 2.
        group_size: see :func:`slot_positions`.

    Returns:
        ``[num_groups, num_experts]`` int32.

    Raises:
        TypeError, ValueError: as :func:`slot_positions`.
    """
    _check_ids("expert_histogram", topk_ids, num_experts, group_size)
    return _expert_histogram(topk_ids, num_experts, group_size)


def _check_ids(name: str, topk_ids: Tensor, num_experts: int, group_size: int | None) -> None:
    _checks.is_tensor(name, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank(name, "topk_ids", topk_ids, "num_tokens, top_k")
    _checks.is_int(name, "num_experts", num_experts, low=1, high=2**31 - 2, why=" (counters are int32)")
    if group_size is not None:
        _checks.is_int(name, "group_size", group_size, low=1)


@fake("slot_positions")
def _slot_positions_fake(
    topk_ids: Tensor,
    num_experts: int,
    order: str = "choice",
    priority: Tensor | None = None,
    group_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    return topk_ids.new_empty(topk_ids.shape, dtype=torch.int32), _expert_histogram_fake(
        topk_ids, num_experts, group_size
    )


@fake("expert_histogram")
def _expert_histogram_fake(topk_ids: Tensor, num_experts: int, group_size: int | None = None) -> Tensor:
    num_groups = 1 if group_size is None else (topk_ids.shape[0] + group_size - 1) // group_size
    return topk_ids.new_empty((num_groups, num_experts), dtype=torch.int32)


_slot_positions = raw("slot_positions")
_expert_histogram = raw("expert_histogram")
