"""permute and gather_rows: slots sorted by expert, and token rows in that order."""

import torch
from torch import Tensor

from moe_ext.reference.precision import take_rows


def permute(
    topk_ids: Tensor, num_experts: int, capacity: int | None = None, drop_order: str = "token"
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the T * K slots by (expert, token, k). Slot ``t * K + k`` is the k-th choice of token t.

    Ids below 0 or at and above ``num_experts`` are sentinels: their slots belong to no expert and get no row.

    Args:
        topk_ids: ``[T, K]``, integers.
        num_experts: E.
        capacity: most rows of an expert; further slots are dropped and get no row. None: no limit.
        drop_order: which slots of an expert come first: ``"token"``, in the order of slots, or ``"choice"``, every
            token's choice 0, then every token's choice 1, ...

    Returns:
        All int32: ``expert_offsets [E + 1]``, expert e owns the rows ``expert_offsets[e] : expert_offsets[e + 1]``;
        ``row_to_slot [T * K]``, -1 at and past ``expert_offsets[E]``; its inverse ``slot_to_row [T, K]``, -1 for
        sentinels and dropped slots.
    """
    ids = topk_ids.long()
    experts = torch.where((ids < 0) | (ids >= num_experts), num_experts, ids)
    if capacity is not None:
        experts = experts.where(_position(experts, num_experts, drop_order) < capacity, num_experts)
    experts = experts.flatten()
    counts = torch.bincount(experts, minlength=num_experts + 1)[:num_experts]
    expert_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    row_to_slot = experts.argsort(stable=True)
    rows = torch.arange(experts.numel(), device=experts.device)
    row_to_slot = torch.where(rows < expert_offsets[-1], row_to_slot, -1)

    slot_to_row = torch.full_like(experts, -1)
    owned = row_to_slot >= 0
    slot_to_row[row_to_slot[owned]] = rows[owned]
    int32 = torch.int32
    return expert_offsets.to(int32), row_to_slot.to(int32), slot_to_row.view_as(topk_ids).to(int32)


def _position(experts: Tensor, num_experts: int, drop_order: str) -> Tensor:
    """How many slots of the same expert come before each slot."""
    in_order = experts if drop_order == "token" else experts.T
    of_slot = in_order.flatten()
    by_expert = of_slot.argsort(stable=True)
    grouped = of_slot[by_expert]
    position = torch.empty_like(of_slot)
    position[by_expert] = torch.arange(of_slot.numel(), device=of_slot.device) - torch.searchsorted(grouped, grouped)
    position = position.view(in_order.shape)
    return position if drop_order == "token" else position.T


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
