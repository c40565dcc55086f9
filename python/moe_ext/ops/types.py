"""What the routing ops return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Routing(NamedTuple):
    """Which experts a token goes to, and how much each of them counts.

    Attributes:
        topk_weights: ``[num_tokens, top_k]`` float32 (float64 for float64 logits), in the order of ``topk_ids``.
        topk_ids: ``[num_tokens, top_k]`` int32, best expert first. -1 means "no expert" (a sentinel).
    """

    topk_weights: Tensor
    topk_ids: Tensor


class RoutingWithStatistics(NamedTuple):
    """A :class:`Routing`, and sums over its tokens that auxiliary losses are made of.

    A token that chose nobody adds nothing to any of them.

    Attributes:
        topk_weights: ``[num_tokens, top_k]``, as in :class:`Routing`.
        topk_ids: ``[num_tokens, top_k]`` int32, as in :class:`Routing`.
        score_sums: ``[num_experts]`` in the dtype of the weights: the scores of all tokens, each token's normalised to
            a sum of one.
        expert_counts: ``[num_experts]`` int32: how often each expert was chosen.
        z_sum: scalar in the dtype of the weights: the sum of ``logsumexp(router_logits)**2``.
    """

    topk_weights: Tensor
    topk_ids: Tensor
    score_sums: Tensor
    expert_counts: Tensor
    z_sum: Tensor


class SlotPositions(NamedTuple):
    """Who comes first at an expert.

    Attributes:
        positions: ``[num_tokens, top_k]`` int32: how many slots of the same expert, in the same group of tokens, come
            before the slot; -1 for a sentinel.
        counts: ``[num_groups, num_experts]`` int32: how many slots an expert has in all.
    """

    positions: Tensor
    counts: Tensor


class ExpertChoices(NamedTuple):
    """Which tokens each expert has chosen, and the same seen from the tokens.

    Attributes:
        token_ids: ``[num_groups, num_experts, capacity]`` int32: tokens 0 .. num_tokens - 1, best first, -1 for places
            without one.
        topk_ids: ``[num_tokens, max_experts_per_token]`` int32: the experts that chose a token, the one with its best
            score first; then -1.
    """

    token_ids: Tensor
    topk_ids: Tensor


class Permutation(NamedTuple):
    """The order of the rows when they are sorted by (expert, token, k), and the way there and back.

    Slot ``t * top_k + k`` is the k-th choice of token t. There are R = num_tokens * top_k rows; those at and past
    ``expert_offsets[num_experts]`` belong to no expert.

    Attributes:
        expert_offsets: ``[num_experts + 1]`` int32: the rows of expert e are
            ``expert_offsets[e]:expert_offsets[e + 1]``. ``expert_offsets[1:]`` is what
            ``torch.nn.functional.grouped_mm`` calls ``offs``.
        row_to_slot: ``[R]`` int32: sorted row to slot, -1 for rows of no expert.
        slot_to_row: ``[num_tokens, top_k]`` int32: the inverse, -1 for slots whose id is a sentinel or
            that were dropped.
    """

    expert_offsets: Tensor
    row_to_slot: Tensor
    slot_to_row: Tensor
