"""permute and gather_rows: slots sorted by expert, and token rows in that order."""

import torch
from torch import Tensor

from moe_ext.reference.precision import take_rows


def permute(topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the T * K slots by (expert, token, k). Slot ``t * K + k`` is the k-th choice of token t.

    Ids below 0 or at and above ``num_experts`` are sentinels: their slots belong to no expert and get no row.

    Args:
        topk_ids: ``[T, K]``, integers.
        num_experts: E.

    Returns:
        All int32: ``expert_offsets [E + 1]``, expert e owns the rows ``expert_offsets[e] : expert_offsets[e + 1]``;
        ``row_to_slot [T * K]``, -1 at and past ``expert_offsets[E]``; its inverse ``slot_to_row [T, K]``, -1 for
        sentinels.
    """
    slots = topk_ids.long().flatten()
    experts = torch.where((slots < 0) | (slots >= num_experts), num_experts, slots)
    counts = torch.bincount(experts, minlength=num_experts + 1)[:num_experts]
    expert_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    row_to_slot = experts.argsort(stable=True)
    rows = torch.arange(slots.numel(), device=slots.device)
    row_to_slot = torch.where(rows < expert_offsets[-1], row_to_slot, -1)

    slot_to_row = torch.full_like(slots, -1)
    owned = row_to_slot >= 0
    slot_to_row[row_to_slot[owned]] = rows[owned]
    int32 = torch.int32
    return expert_offsets.to(int32), row_to_slot.to(int32), slot_to_row.view_as(topk_ids).to(int32)


def gather_rows(x: Tensor, permutation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The row of x that each sorted row stands for: ``rows[r] = x[row_to_slot[r] // K]``.

    Differentiable in x; the gradient sums over k in float32 and is rounded once.

    Args:
        x: ``[T, H]``.
        permutation: what ``permute`` returned.

    Returns:
        ``[T * K, H]`` in the dtype of x, zero at and past ``expert_offsets[E]``.
    """
    _, row_to_slot, slot_to_row = permutation
    token = row_to_slot.div(slot_to_row.shape[1], rounding_mode="floor")  # -1 stays -1
    return take_rows(x, token).to(x.dtype)
