"""Choices after the first that are dispatched at random, in proportion to their weight."""

import torch
from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops.types import Routing
from moe_ext.routing._arguments import Routed, check_routing, normalized
from moe_ext.routing._random import draw_seed, random
from moe_ext.routing.dropping import EPS, keep_slots


def random_second_expert(routing: Routed, *, threshold: float = 0.5, seed: Tensor | None = None) -> Routing:
    """Keep every choice after the first with probability min(1, g / threshold), g being its share of the weights.

    `threshold=0.5` is GShard's rule, 2 g_2 > u with u uniform on (0, 1) (arXiv:2006.16668, algorithm 1);
    0.2 is ST-MoE's (arXiv:2202.08906). A choice that is not kept becomes (0, -1) and takes no place at its
    expert, so this comes before `limit_capacity`. The weights that stay are not changed. g is computed from normalised
    weights, whether they are or not.

    Args:
        routing: topk_weights [T, K], not negative, and topk_ids [T, K], best first.
        threshold: see above; choices with at least this share are always kept.
        seed: [1] int64 on the device of the ids; None draws one from torch's generator.

    Returns:
        `Routing` of the same shapes and dtypes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    name = "routing.random_second_expert"
    topk_weights, topk_ids = check_routing(name, routing)
    _checks.is_number(name, "threshold", threshold, above=0.0)
    seed = draw_seed(topk_ids.device) if seed is None else seed
    share = normalized(topk_weights.detach(), EPS)
    keep = share > random(seed, (topk_ids.shape[0], topk_ids.shape[1]), "uniform") * threshold
    is_first = torch.arange(topk_ids.shape[1], device=topk_ids.device) == 0
    return keep_slots(topk_weights, topk_ids, keep | is_first, renormalize=False)
