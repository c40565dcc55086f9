"""route_top_p: the fewest best experts whose probabilities reach p (Huang et al. 2024, arXiv:2403.07652)."""

import torch
from torch import Tensor

from moe_ext.reference.route import route


def route_top_p(
    router_logits: Tensor,
    p: float,
    *,
    max_k: int | None = None,
    score: str = "softmax",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
    nonfinite: str = "propagate",
) -> tuple[Tensor, Tensor]:
    """Choose experts for every token, best first, until the sum of their scores is at least ``p``.

    An expert with a score of 0 is chosen only if it is the best. With ``p = 1`` of a softmax all others are chosen.

    Args:
        router_logits, score, renormalize, eps, scale, nonfinite: see ``route``; ``score`` may not be ``none``.
        p: the sum to reach.
        max_k: most experts of a token; all of them if None.

    Returns:
        ``topk_weights [T, max_k]`` and ``topk_ids [T, max_k]`` int32, padded with 0 and -1.

    Raises:
        ValueError: ``score="none"``; and what ``route`` raises.
    """
    if score == "none":
        raise ValueError("score: expected one that is never negative, got 'none'")
    top_k = router_logits.shape[1] if max_k is None else max_k
    scores, ids = route(router_logits, top_k, score=score, nonfinite=nonfinite)
    # One addition after the other, in the dtype of the scores: torch.cumsum would add in float64.
    columns = scores.detach().unbind(1)
    sums = [torch.zeros_like(columns[0])]
    for column in columns[:-1]:
        sums.append(sums[-1] + column)
    # Spelled so that NaN reaches nothing.
    unreached = ~(torch.stack(sums, dim=1) >= p) | (score == "softmax" and p >= 1)
    chosen = unreached & (scores.detach() != 0)
    chosen[:, 0] = True
    chosen &= ids >= 0
    weights = torch.where(chosen, scores, 0.0)
    if renormalize:
        # A row that chose nobody stays at 0 whatever eps is.
        total = weights.sum(dim=1, keepdim=True) + eps
        weights = weights / torch.where(chosen.any(dim=1, keepdim=True), total, 1.0)
    return weights * scale, torch.where(chosen, ids, -1).to(torch.int32)
