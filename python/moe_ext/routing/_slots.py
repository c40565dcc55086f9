"""From "these experts of each token" to slots: best first, unused ones (-1, 0), as many for every token."""

from torch import Tensor

from moe_ext.ops import route
from moe_ext.ops.types import Routing


def fill_slots(selected: Tensor, ranking: Tensor, weights: Tensor, num_slots: int) -> Routing:
    """The `num_slots` best of the selected experts of each token.

    Args:
        selected: [T, E] bool. ranking: [T, E], larger is better, ties to the lower index.
        weights: [T, E], what the slots carry; differentiable.
        num_slots: K, 1..E. What is selected beyond it is left out.
    """
    # route rather than torch.topk, which promises nothing about ties.
    order = route(ranking.detach().masked_fill(~selected, float("-inf")), num_slots, score="none").topk_ids
    chosen = selected.gather(1, order.long())
    topk_weights = weights.gather(1, order.long()).masked_fill(~chosen, 0)
    return Routing(topk_weights, order.masked_fill(~chosen, -1))
