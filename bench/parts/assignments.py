"""expert_choice, sinkhorn, auction and route_top_p: what they compute, the bytes that they cannot avoid moving, and who
computes it. All but route_top_p take float32, whatever the dtype of the logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from bench.parts.contenders import Entry, moe_ext, others, ours
from bench.parts.work import Part, Sizes, Tensors, relative_error
from bench.timing import Step

_ITERATIONS: Final = 10  # of sinkhorn: about what 1e-4 takes for normal logits, and the same for everybody
_TOP_P: Final = 0.4  # of Huang et al. 2024, arXiv:2403.07652
_SLACK: Final = 1e-5  # of a sum of float32 that is compared with _TOP_P


def _logits(tensors: Tensors) -> Tensor:
    return tensors.logits.detach().float()


def _scores(tensors: Tensors) -> Tensor:
    return _logits(tensors).softmax(-1)


def _capacity(sizes: Sizes) -> int:
    return max(1, sizes.num_tokens * sizes.top_k // sizes.num_experts)


# Experts choose ---------------------------------------------------------------------------------------------------


def _expert_choice_bytes(sizes: Sizes, itemsize: int) -> int:
    # Scores; the tokens of each expert and the experts of each token, of whom there may be E.
    return 4 * (2 * sizes.num_tokens * sizes.num_experts + sizes.num_experts * _capacity(sizes))


def _check_expert_choice(tensors: Tensors, token_ids: Any) -> float:
    columns, ids = _scores(tensors).T, token_ids.long()
    if ids.sort(dim=1).values.diff(dim=1).eq(0).any():
        return 1.0
    best = columns.topk(_capacity(tensors.sizes), dim=1).values
    return relative_error(columns.gather(1, ids), best.double())


def _our_expert_choice(tensors: Tensors) -> Step:
    scores, capacity = _scores(tensors), _capacity(tensors.sizes)
    return lambda: moe_ext().expert_choice(scores, capacity).token_ids[0]


def _torch_expert_choice(tensors: Tensors) -> Step:
    # Half of the work: nothing here says which experts a token has.
    scores, capacity = _scores(tensors), _capacity(tensors.sizes)
    return lambda: scores.T.topk(capacity, dim=1).indices


# Balanced assignments ---------------------------------------------------------------------------------------------


def _sinkhorn_bytes(sizes: Sizes, itemsize: int) -> int:
    # Logits in, the matrix out. What lies between may stay in a cache.
    return 8 * sizes.num_tokens * sizes.num_experts


def _balance(logits: Tensor) -> Tensor:
    """By products with vectors, as Megatron-LM does it."""
    kernel = (logits - logits.amax(1, keepdim=True)).exp()
    target, v = logits.size(0) / logits.size(1), logits.new_ones(logits.size(1))
    for _ in range(_ITERATIONS):
        v = target / ((1 / (kernel @ v)) @ kernel)
    return kernel * (1 / (kernel @ v)).unsqueeze(1) * v


def _balance_logarithms(logits: Tensor) -> Tensor:
    target = torch.log(logits.new_tensor(logits.size(0) / logits.size(1)))
    v = logits.new_zeros(logits.size(1))
    for _ in range(_ITERATIONS):
        u = -torch.logsumexp(logits + v, dim=1, keepdim=True)
        v = target - torch.logsumexp(logits + u, dim=0)
    return (logits - torch.logsumexp(logits + v, dim=1, keepdim=True) + v).exp()


def _check_sinkhorn(tensors: Tensors, result: Any) -> float:
    return relative_error(result, _balance(_logits(tensors).double()))


def _our_sinkhorn(tensors: Tensors) -> Step:
    logits = _logits(tensors)
    return lambda: moe_ext().sinkhorn(logits, tolerance=0.0, max_iterations=_ITERATIONS)


def _of_logits(function: Callable[[Tensor], object]) -> Callable[[Tensors], Step]:
    return lambda tensors: partial(function, _logits(tensors))


def _auction_bytes(sizes: Sizes, itemsize: int) -> int:
    # Scores in, one expert a token out.
    return 4 * sizes.num_tokens * (sizes.num_experts + 1)


def _torch_auction(scores: Tensor) -> Tensor:
    """The rounds of `moe_ext.auction`, each in a few operations on all tokens."""
    num_tokens, num_experts = scores.shape
    places = -(-num_tokens // num_experts)
    scores = scores - scores.min()
    epsilon = (scores.max() / 50).clamp(min=1e-4)
    prices, offers = scores.new_zeros(num_experts), scores.new_zeros(num_tokens)
    experts = torch.full((num_tokens,), -1)
    while len(waiting := (experts < 0).nonzero().flatten()):
        own = scores[waiting]
        profits = own - prices
        best = profits.max(dim=1).indices.unsqueeze(1)  # the first of equal ones
        second = profits.scatter(1, best, -torch.inf).amax(1, keepdim=True)
        offers[waiting] = (own.gather(1, best) - second + epsilon).squeeze(1)
        experts[waiting] = best.squeeze(1)
        order = offers.sort(descending=True, stable=True).indices
        order = order[experts[order].sort(stable=True).indices]
        counts = torch.bincount(experts, minlength=num_experts)
        first = counts.cumsum(0) - counts
        full = counts >= places
        prices[full] = offers[order[first[full] + places - 1]]
        experts[order[torch.arange(num_tokens) - first[experts[order]] >= places]] = -1
    return experts


def _check_auction(tensors: Tensors, result: Any) -> float:
    """The share of tokens with another expert."""
    return float((result != _torch_auction(_logits(tensors))).double().mean())


def _our_auction(tensors: Tensors) -> Step:
    logits = _logits(tensors)
    return lambda: moe_ext().auction(logits)


# As many experts as it takes --------------------------------------------------------------------------------------


def _top_p_bytes(sizes: Sizes, itemsize: int) -> int:
    # Logits in; weights and ids out, wide enough for all experts.
    return sizes.num_tokens * sizes.num_experts * (itemsize + 8)


def _check_top_p(tensors: Tensors, result: Any) -> float:
    """Where a sum comes as near to p as it is precise, either cut is right."""
    topk_weights, topk_ids = result
    chosen = topk_ids >= 0
    if not chosen[:, 0].all():
        return 1.0
    scores = tensors.logits.detach().double().softmax(-1)
    best = torch.where(chosen, scores.sort(dim=-1, descending=True).values, 0.0)
    total, last = best.sum(1), best.gather(1, chosen.sum(1, keepdim=True) - 1).squeeze(1)
    if (total < _TOP_P - _SLACK).any() or (total - last > _TOP_P + _SLACK).any():
        return 1.0
    own = torch.where(chosen, scores.gather(1, topk_ids.long().clamp(min=0)), 0.0)
    return max(relative_error(topk_weights, best), relative_error(own, best))


def _our_top_p(tensors: Tensors) -> Step:
    logits = tensors.logits.detach()
    return lambda: moe_ext().route_top_p(logits, _TOP_P)


def _torch_top_p(tensors: Tensors) -> Step:
    logits = tensors.logits.detach()

    def step() -> object:
        scores, ids = logits.softmax(-1, dtype=torch.float32).sort(dim=-1, descending=True)
        chosen = scores.cumsum(-1) - scores < _TOP_P
        return torch.where(chosen, scores, 0.0), torch.where(chosen, ids, -1)

    return step


PARTS: Final = (
    Part("expert_choice", _expert_choice_bytes, _check_expert_choice),
    Part("sinkhorn", _sinkhorn_bytes, _check_sinkhorn),
    Part("auction", _auction_bytes, _check_auction),
    Part("route_top_p", _top_p_bytes, _check_top_p),
)
ENTRIES: Final[dict[str, list[Entry]]] = {
    "expert_choice": [ours(_our_expert_choice), others("torch_topk", _torch_expert_choice)],
    "sinkhorn": [
        ours(_our_sinkhorn),
        others("torch_products", _of_logits(_balance)),
        others("torch_logsumexp", _of_logits(_balance_logarithms)),
    ],
    "auction": [ours(_our_auction), others("torch_rounds", _of_logits(_torch_auction))],
    "route_top_p": [ours(_our_top_p), others("torch_sort", _torch_top_p)],
}
