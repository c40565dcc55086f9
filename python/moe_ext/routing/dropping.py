"""Dropping the slots that an expert has no room for."""

from typing import Literal

import torch
from torch import Tensor

from moe_ext.ops import _checks, slot_positions
from moe_ext.ops.types import Routing, SlotPositions
from moe_ext.routing._arguments import Routed, check_routing, normalized
from moe_ext.routing._random import draw_seed, random

Order = Literal["token", "choice", "priority", "score", "random"]
ORDERS = ("token", "choice", "priority", "score", "random")
EPS = torch.finfo(torch.float32).eps


def limit_capacity(
    routing: Routed,
    num_experts: int,
    capacity: int | Tensor,
    *,
    order: Order = "choice",
    priority: Tensor | None = None,
    group_size: int | None = None,
    renormalize: bool = False,
    eps: float = EPS,
    seed: Tensor | None = None,
) -> Routing:
    """Each expert keeps its first `capacity` slots; the id of a dropped slot becomes -1 and its weight 0.

    An expert with c slots keeps min(c, C), whatever the order, and a token that has lost all its slots gets nothing
    from the experts. Who comes first:

    * "token": the tokens in order, each with all its choices (Switch Transformer, arXiv:2101.03961).
    * "choice": the first choices of all tokens, then the second choices, ... (GShard, arXiv:2006.16668, algorithm 1).
    * "priority": as "choice", with the tokens by falling priority (V-MoE, arXiv:2106.05974, section 4).
    * "score": slots by falling weight, whatever choice they are (Megatron-LM's "probs").
    * "random": slots in random order (random token selection, DeepSpeed-MoE, arXiv:2201.05596).

    Args:
        routing: topk_weights [T, K] and topk_ids [T, K]; losses want the ids from before.
        num_experts: E.
        capacity: C, an integer or an integer tensor of one value, such as `dynamic_capacity` gives.
        order: see above.
        priority: what tokens, [T], or slots, [T, K], are sorted by, larger first. None: the largest weight of a token
            for "priority", the weights for "score", random numbers for "random", nothing for the others.
        group_size: every group of this many consecutive tokens has C places at each expert of its own (GShard's local
            groups); None: all tokens are one group. The last group may be shorter.
        renormalize: divide the weights that are left by their sum, as fairseq and DeepSpeed do for two choices. Not
            for K = 1, where no gradient would be left.
        eps: the sum counts as at least this.
        seed: [1] int64 on the device of the ids, for "random"; None draws one from torch's generator.

    Returns:
        `Routing` of the same shapes and dtypes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    name = "routing.limit_capacity"
    topk_weights, topk_ids = check_routing(name, routing)
    check_capacity(name, capacity, topk_ids)
    _checks.is_choice(name, "order", order, ORDERS)
    _checks.is_number(name, "eps", eps, low=0.0)
    positions, _ = positions_in_order(topk_weights, topk_ids, num_experts, order, priority, group_size, seed)
    return keep_slots(topk_weights, topk_ids, (positions >= 0) & (positions < capacity), renormalize, eps)


def check_capacity(function: str, capacity: int | Tensor, topk_ids: Tensor) -> None:
    """An integer, or an integer tensor with one value beside the ids."""
    if not isinstance(capacity, Tensor):
        _checks.is_int(function, "capacity", capacity, low=0)
        return
    _checks.is_tensor(function, "capacity", capacity, (torch.int32, torch.int64))
    if capacity.numel() != 1:
        raise ValueError(f"moe_ext.{function}: capacity must be one number, got shape {tuple(capacity.shape)}")
    _checks.same_device(function, "capacity", capacity, "topk_ids", topk_ids)


def positions_in_order(
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    order: Order,
    priority: Tensor | None,
    group_size: int | None,
    seed: Tensor | None,
) -> SlotPositions:
    """`slot_positions` in one of ORDERS."""
    if priority is None:
        if order == "priority":
            priority = topk_weights.amax(1) if topk_weights.shape[1] else topk_weights.sum(1)
        elif order == "score":
            priority = topk_weights
        elif order == "random":
            seed = draw_seed(topk_ids.device) if seed is None else seed
            priority = random(seed, (topk_ids.shape[0], topk_ids.shape[1]), "uniform")
    visited = "token" if order == "token" else "choice"
    return slot_positions(topk_ids, num_experts, order=visited, priority=priority, group_size=group_size)


def keep_slots(topk_weights: Tensor, topk_ids: Tensor, keep: Tensor, renormalize: bool, eps: float = EPS) -> Routing:
    """The slots where `keep` [T, K] is true; the others become (0, -1)."""
    weights = topk_weights.where(keep, 0.0)
    return Routing(normalized(weights, eps) if renormalize else weights, topk_ids.where(keep, -1))
