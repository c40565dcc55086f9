"""Another expert for the slots that an expert has no room for."""

import torch
from torch import Tensor

from moe_ext.ops import _checks, route
from moe_ext.ops.types import Routing
from moe_ext.routing._arguments import Routed, check_routing, group_of_tokens, normalized
from moe_ext.routing._random import draw_seed
from moe_ext.routing.dropping import EPS, ORDERS, Order, check_capacity, positions_in_order


def reroute_overflow(
    routing: Routed,
    scores: Tensor,
    num_experts: int,
    capacity: int | Tensor,
    *,
    max_iterations: int = 1,
    order: Order = "choice",
    priority: Tensor | None = None,
    group_size: int | None = None,
    renormalize: bool = False,
    eps: float = EPS,
    seed: Tensor | None = None,
) -> Routing:
    """`limit_capacity`, but a slot without a place asks the next best experts before it is dropped.

    "No-Token-Left-Behind" (Switch Transformer, arXiv:2101.03961, appendix B). In each iteration every slot without a
    place asks for the best expert by `scores` that has room and that the token does not go to already; slots of one
    token ask for different ones. Who gets the places that are left is decided in the same order again, and the rest
    tries again. A slot that moves has its score at the new expert for weight. Places that were given are never taken
    back, so no more slots are dropped than by `limit_capacity`.

    Args:
        routing, num_experts, capacity, order, priority, group_size, renormalize, eps, seed: as in `limit_capacity`.
            A `priority` of slots, [T, K], goes with the slot to its new expert.
        scores: [T, E], what experts are ranked by, and the weights of slots that move; probabilities, mostly. Gradients
            flow to the scores that became weights.
        max_iterations: how often slots without a place may ask; 0 is `limit_capacity`.

    Returns:
        `Routing` of the same shapes and dtypes.

    Raises:
        TypeError, ValueError: as `limit_capacity`; scores that are not [T, E].
    """
    name = "routing.reroute_overflow"
    topk_weights, topk_ids = check_routing(name, routing)
    check_capacity(name, capacity, topk_ids)
    _checks.is_choice(name, "order", order, ORDERS)
    _checks.is_tensor(name, "scores", scores, _checks.DATA_DTYPES)
    _checks.has_shape(name, "scores", scores, "num_tokens, num_experts", (topk_ids.shape[0], num_experts))
    _checks.is_int(name, "max_iterations", max_iterations, low=0)
    if order == "random" and seed is None:
        seed = draw_seed(topk_ids.device)

    positions, counts = positions_in_order(topk_weights, topk_ids, num_experts, order, priority, group_size, seed)
    placed = (positions >= 0) & (positions < capacity)
    waiting = (positions >= 0) & ~placed
    ids = topk_ids.where(placed, -1)
    room = capacity - counts.clamp(max=capacity)
    moved = torch.zeros_like(placed)
    top_k = min(ids.shape[1], num_experts)
    for _ in range(max_iterations if top_k else 0):
        room_of_token = _of_tokens(room, ids.shape[0], group_size)
        candidates, exist = _candidates(scores.detach(), ids, room_of_token > 0, top_k)
        # The j-th waiting slot of a token asks for its j-th candidate.
        place = (waiting.long().cumsum(1) - 1).clamp(0, top_k - 1)
        asks = waiting & exist.gather(1, place) & (waiting.long().cumsum(1) <= top_k)
        asked = candidates.gather(1, place).where(asks, -1)
        of_scores = scores.detach().gather(1, asked.clamp(min=0).long())
        positions, counts = positions_in_order(of_scores, asked, num_experts, order, priority, group_size, seed)
        gets = asks & (positions < room_of_token.gather(1, asked.clamp(min=0).long()))
        ids = asked.to(ids.dtype).where(gets, ids)
        moved, waiting = moved | gets, waiting & ~gets
        room = room - torch.minimum(counts, room)

    new_weights = scores.gather(1, ids.clamp(min=0).long()).to(topk_weights.dtype)
    weights = new_weights.where(moved, topk_weights.where(placed, 0.0))
    return Routing(normalized(weights, eps) if renormalize else weights, ids)


def _of_tokens(of_groups: Tensor, num_tokens: int, group_size: int | None) -> Tensor:
    """[G, E] -> [T, E]."""
    if group_size is None:
        return of_groups.expand(num_tokens, -1)
    return of_groups.index_select(0, group_of_tokens(num_tokens, group_size, of_groups.device))


def _candidates(scores: Tensor, ids: Tensor, has_room: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best `top_k` experts of each token that have room and that it does not go to; which exist."""
    num_tokens, num_experts = scores.shape
    taken = torch.zeros(num_tokens, num_experts + 1, dtype=torch.bool, device=scores.device)
    taken = taken.scatter(1, ids.long().where(ids >= 0, num_experts), True)[:, :num_experts]
    free = has_room & ~taken
    candidates = route(scores.where(free, -torch.inf), top_k, score="none").topk_ids
    return candidates, free.gather(1, candidates.long())
