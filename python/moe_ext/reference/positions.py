"""slot_positions: which place a slot has among the slots of its expert."""

import torch
from torch import Tensor


def slot_positions(
    topk_ids: Tensor,
    num_experts: int,
    order: str = "choice",
    priority: Tensor | None = None,
    group_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """How many slots of the same expert, in the same group of tokens, come before each slot.

    Args:
        topk_ids: ``[T, K]``, integers; ids outside ``0 .. num_experts - 1`` are sentinels.
        num_experts: E.
        order: ``"token"``, the order of slots, or ``"choice"``, every token's choice 0, then every token's choice 1.
        priority: ``[T]``: tokens come by falling priority instead of by number. ``[T, K]``: slots come by falling
            priority. Equal ones stay in ``order``; NaN is -inf. Compared in float32.
        group_size: tokens of a group; the last may be shorter. None: all tokens are one.

    Returns:
        Both int32: ``positions [T, K]``, -1 for sentinels; ``counts [G, E]``, the slots of each expert in each group.
    """
    num_tokens, top_k = topk_ids.shape
    if priority is not None:
        priority = priority.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    positions, counts = [], []
    size = max(num_tokens, 1) if group_size is None else group_size
    for begin in range(0, num_tokens if group_size is not None else 1, size):
        group = slice(begin, min(begin + size, num_tokens))
        own = None if priority is None else priority[group]
        in_group, of_experts = _one_group(topk_ids[group].long(), num_experts, order, own)
        positions.append(in_group)
        counts.append(of_experts)
    empty = torch.empty(0, dtype=torch.int32, device=topk_ids.device)
    return (
        torch.cat([empty.view(0, top_k) if top_k else empty.view(num_tokens, 0), *positions])[:num_tokens],
        torch.cat([empty.new_empty(0, num_experts), *counts]),
    )


def _one_group(ids: Tensor, num_experts: int, order: str, priority: Tensor | None) -> tuple[Tensor, Tensor]:
    num_tokens, top_k = ids.shape
    tokens = torch.arange(num_tokens, device=ids.device)
    if priority is not None and priority.ndim == 1:
        tokens = priority.argsort(descending=True, stable=True)
    slots = tokens.unsqueeze(1) * top_k + torch.arange(top_k, device=ids.device)  # [T, K], visited by rows
    slots = (slots if order == "token" else slots.T).flatten()
    if priority is not None and priority.ndim == 2:
        slots = slots[priority.flatten()[slots].argsort(descending=True, stable=True)]

    visited = ids.flatten()[slots]
    is_expert = (visited >= 0) & (visited < num_experts)
    one_hot = visited.unsqueeze(1) == torch.arange(num_experts, device=ids.device)  # [T * K, E]
    before = one_hot.cumsum(0) - one_hot.long()
    place = torch.where(is_expert, (before * one_hot).sum(1), -1)
    positions = torch.empty_like(place).scatter(0, slots, place)
    return positions.view(num_tokens, top_k).to(torch.int32), one_hot.sum(0, keepdim=True, dtype=torch.int32)
