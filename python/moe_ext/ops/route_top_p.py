"""route_top_p: as many experts for a token as it takes to reach a given probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import differentiable
from ._library import fake, raw
from .route import NONFINITE, _call
from .types import Routing

TOP_P_SCORES = ("softmax", "sigmoid", "sqrtsoftplus")


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
) -> Routing:
    """Chooses the fewest best experts of each token whose scores add up to at least ``p``.

    Dynamic routing of Huang et al. 2024 (arXiv:2403.07652, equations 3 and 4; they take ``p=0.4``). Experts are
    ordered as in :func:`moe_ext.route`, and their scores added in float32 (float64 for float64 logits), best first, up
    to and with the expert that reaches ``p``. An expert whose score is 0 (a logit of -inf) is never chosen unless
    there is nothing else. ``p=0`` chooses the best expert; ``p=1``, or a sum that rounding keeps below ``p``, all
    experts whose probability is positive.

    Gradients flow from ``topk_weights`` to ``router_logits`` only; the selection is a constant.

    Args:
        router_logits: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or float64.
        p: what the scores of the chosen experts must reach; at least 0, and at most 1 for ``score="softmax"``. Other
            scores do not sum to 1, and are compared as they are.
        max_k: at most this many experts per token, and the number of columns; ``num_experts`` if None.
        score: "softmax", "sigmoid" or "sqrtsoftplus".
        renormalize: divide the weights of a token by (their sum + ``eps``).
        eps: see ``renormalize``; at least 0.
        scale: factor on the weights, applied last.
        nonfinite: as in :func:`moe_ext.route`. With "propagate" a row with a NaN or +inf is given ``max_k`` experts
            and weights of NaN (no sum of them reaches ``p``).

    Returns:
        ``Routing(topk_weights, topk_ids)``: ``[num_tokens, max_k]`` float32 (float64 for float64 logits) and
        ``[num_tokens, max_k]`` int32, best first; unused places hold 0 and -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or range or option; with ``nonfinite="error"``, a non-finite logit, as in
            :func:`moe_ext.route`.
    """
    name = "route_top_p"
    _checks.is_tensor(name, "router_logits", router_logits, _checks.DATA_DTYPES)
    _checks.has_rank(name, "router_logits", router_logits, "num_tokens, num_experts")
    num_experts = router_logits.shape[1]
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: router_logits must have at least one expert, got num_experts 0")
    _checks.is_choice(name, "score", score, TOP_P_SCORES)
    _checks.is_number(name, "p", p, low=0.0)
    if score == "softmax" and p > 1:
        raise ValueError(f"moe_ext.{name}: p must be at most 1, a probability, got {p}")
    if max_k is None:
        max_k = num_experts
    _checks.is_int(name, "max_k", max_k, low=1, high=num_experts, why=" (num_experts)")
    _checks.is_bool(name, "renormalize", renormalize)
    _checks.is_number(name, "eps", eps, low=0.0)
    _checks.is_number(name, "scale", scale)
    _checks.is_choice(name, "nonfinite", nonfinite, NONFINITE)
    args = (router_logits, float(p), max_k, score, renormalize, float(eps), float(scale), nonfinite)
    return Routing(*_call(name, _route_top_p, args))


@fake("route_top_p")
def _route_top_p_fake(router_logits: Tensor, p: float, max_k: int, *options: Any) -> tuple[Tensor, Tensor]:
    shape = (router_logits.shape[0], max_k)
    wide = torch.float64 if router_logits.dtype == torch.float64 else torch.float32
    return router_logits.new_empty(shape, dtype=wide), router_logits.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    router_logits, _, _, score, renormalize, eps, scale, nonfinite = inputs
    topk_ids = output[1]
    ctx.mark_non_differentiable(topk_ids)
    ctx.save_for_backward(router_logits, topk_ids)
    ctx.options = (score, False, renormalize, eps, scale, nonfinite)


def _backward(ctx: Any, grad_weights: Tensor | None, grad_ids: None) -> tuple[Tensor | None, ...]:
    grad_logits = None
    if grad_weights is not None and ctx.needs_input_grad[0]:
        router_logits, topk_ids = ctx.saved_tensors
        # Places past the cut have no expert, and give nothing.
        grad_logits = raw("route_backward")(grad_weights, router_logits, topk_ids, *ctx.options)
    return (grad_logits, *(None,) * 7)


_route_top_p = differentiable("route_top_p", setup_context=_setup_context, backward=_backward)
