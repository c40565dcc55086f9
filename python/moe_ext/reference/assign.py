"""expert_choice, auction and sinkhorn: routing where experts choose, or an assignment does."""

import torch
from torch import Tensor

from moe_ext.reference.precision import compute_dtype


def expert_choice(
    scores: Tensor,
    capacity: int,
    *,
    num_groups: int = 1,
    token_mask: Tensor | None = None,
    max_experts_per_token: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``capacity`` best tokens of each expert (Zhou et al. 2022, arXiv:2202.09368, section 3.2).

    Higher scores first, equal ones by the lower token, NaN above everything; -inf and masked tokens are never chosen.

    Args:
        scores: ``[T, E]``, any floating dtype.
        capacity: C, at most the tokens of a group.
        num_groups: G equal groups of consecutive tokens, each chosen from on its own.
        token_mask: ``[T]`` bool, False for tokens to leave out.
        max_experts_per_token: K; of more experts the ones with the token's best scores stay. None: E.

    Returns:
        Both int32 and -1 where unused: ``token_ids [G, E, C]``, best first, and ``topk_ids [T, K]``, the experts that
        chose a token, the one with its best score first, equal ones by the lower expert.
    """
    num_tokens, num_experts = scores.shape
    wide = scores.detach().to(compute_dtype(scores.dtype))
    if token_mask is not None:
        wide = wide.masked_fill(~token_mask[:, None], float("-inf"))
    grouped = wide.view(num_groups, num_tokens // num_groups, num_experts).mT
    order = grouped.argsort(dim=2, descending=True, stable=True)[..., :capacity]
    first_token = torch.arange(0, num_tokens, max(num_tokens // num_groups, 1), device=scores.device)[:num_groups]
    tokens = order + first_token.view(-1, 1, 1) if num_tokens else order
    token_ids = torch.where(grouped.gather(2, order).isneginf(), -1, tokens)

    chosen = torch.zeros(num_tokens + 1, num_experts, dtype=torch.bool, device=scores.device)
    experts = torch.arange(num_experts, device=scores.device).view(1, -1, 1).expand_as(token_ids)
    chosen[token_ids, experts] = True  # -1 is the row after the last
    ranked = wide.masked_fill(~chosen[:-1], float("-inf"))
    experts = ranked.argsort(dim=1, descending=True, stable=True)[:, :max_experts_per_token]
    topk_ids = torch.where(chosen[:-1].gather(1, experts), experts, -1)
    return token_ids.to(torch.int32), topk_ids.to(torch.int32)


def auction(scores: Tensor, *, token_mask: Tensor | None = None, max_rounds: int = 1000) -> Tensor:
    """Tokens bid for experts, each of which takes at most ceil(T / E) (BASE, Lewis et al. 2021, arXiv:2103.16716).

    Every token without an expert bids for the one it profits most from what makes it no better than the second best,
    plus epsilon; an expert keeps its highest bids, of equal ones those of the lower tokens, and asks for the lowest
    that it keeps. The value is within T * epsilon of the best (Bertsekas 1992, "Auction algorithms for network flow
    problems"; identical objects are the places of an expert).

    Args:
        scores: ``[T, E]``, any floating dtype. Scores that are not finite count as the lowest finite one.
        token_mask: ``[T]`` bool, False for tokens to leave out.
        max_rounds: after so many rounds, tokens without an expert take the best one with room, in order.

    Returns:
        ``[T]`` int32, -1 for tokens left out.
    """
    num_tokens, num_experts = scores.shape
    experts_of = torch.full((num_tokens,), -1, dtype=torch.int32)
    waiting = list(range(num_tokens)) if token_mask is None else token_mask.nonzero().flatten().tolist()
    places = -(-len(waiting) // num_experts)
    wide = scores.detach().to("cpu", compute_dtype(scores.dtype))
    finite = wide[waiting][wide[waiting].isfinite()]
    low, high = (finite.min(), finite.max()) if finite.numel() else (wide.new_zeros(()), wide.new_zeros(()))
    largest = torch.finfo(wide.dtype).max
    values = torch.where(wide.isfinite(), (wide - low).clamp(max=largest), 0.0)
    epsilon = torch.maximum((high - low).clamp(max=largest) / 50, wide.new_tensor(1e-4))
    prices = wide.new_zeros(num_experts)
    holders: list[list[tuple[float, int]]] = [[] for _ in range(num_experts)]

    for _ in range(max_rounds):
        if not waiting:
            break
        profits = values[waiting] - prices
        # A stable sort has the lower expert first among equals.
        order = profits.argsort(dim=1, descending=True, stable=True)
        best, second = order[:, :1], order[:, min(1, num_experts - 1)].unsqueeze(1)
        bids = (values[waiting].gather(1, best) - profits.gather(1, second)) + epsilon
        if num_experts == 1:
            bids = epsilon.expand_as(bids)
        for token, expert, bid in zip(waiting, best.flatten().tolist(), bids.flatten().tolist(), strict=True):
            holders[expert].append((-bid, token))
        waiting = []
        for expert, held in enumerate(holders):
            held.sort()
            waiting += [token for _, token in held[places:]]
            del held[places:]
            if len(held) == places:
                prices[expert] = -held[-1][0]
        waiting.sort()
    for expert, held in enumerate(holders):
        for _, token in held:
            experts_of[token] = expert
    for token in waiting:
        open_to_it = [e for e, held in enumerate(holders) if len(held) < places]
        expert = max(open_to_it, key=lambda e: (float(values[token, e]), -e))
        holders[expert].append((0.0, token))
        experts_of[token] = expert
    return experts_of.to(scores.device)


def sinkhorn(logits: Tensor, *, tolerance: float = 1e-4, max_iterations: int = 100) -> Tensor:
    """``diag(u) exp(logits) diag(v)`` with equal row sums and equal column sums (S-BASE, Clark et al. 2022,
    arXiv:2202.01169, appendix B).

    Args:
        logits: ``[T, E]``, any floating dtype. NaN counts as -inf, +inf as the largest float32.
        tolerance: stop when v changes by no more than this, relative to itself, in the mean over the experts.
        max_iterations: stop after so many.

    Returns:
        ``[T, E]`` float32 (float64 for float64 logits). Rows sum to 1, those of -inf alone are zeros; columns sum to
        the number of the others divided by E, if -inf leaves that possible; else the iteration ends where a factor
        would fall below 1e-30.
    """
    wide = logits.detach().to(compute_dtype(logits.dtype))
    wide = torch.where(wide.isnan(), float("-inf"), wide)
    wide = torch.where(wide.isposinf(), torch.finfo(torch.float32).max, wide)
    if wide.numel() == 0:
        return wide
    high = wide.amax(dim=1, keepdim=True)
    alive = ~high.isneginf()
    kernel = torch.where(alive, (wide - torch.where(alive, high, 0.0)).exp(), 0.0)
    target = alive.sum() / logits.shape[1]
    v = wide.new_ones(logits.shape[1])
    for _ in range(max_iterations):
        before = v
        after = target / (kernel * _inverse(kernel @ v)[:, None]).sum(0).clamp(min=1e-30)
        if after.min() < 1e-30:
            break
        v = after
        if ((v - before).abs() / before).mean() <= tolerance:
            break
    return kernel * _inverse(kernel @ v)[:, None] * v


def _inverse(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, 1 / sums, 0.0)
