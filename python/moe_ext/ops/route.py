"""route: router logits to the experts of each token and their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable, differentiable_once
from ._library import fake
from .types import Routing, RoutingWithStatistics

SCORES = ("softmax", "sigmoid", "sqrtsoftplus", "none")
GROUP_FILLS = ("-inf", "0")
NONFINITE = ("propagate", "sanitize", "error")


def route(
    router_logits: Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    softmax_after: bool = False,
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_top: int = 1,
    group_fill: str = "-inf",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
    nonfinite: str = "propagate",
) -> Routing:
    """Chooses ``top_k`` experts for each token and computes their weights.

    With z the logits in float32 (float64 for float64 logits) and s = score(z), experts are ranked by s + bias, larger
    first, ties to the lower index. The weights are s of the chosen experts; ``bias`` never enters them. Autocast does
    not lower any of this.

    The options span the routers of published models: softmax, then top-k, renormalised or not (Switch Transformer,
    arXiv:2101.03961; Mixtral, arXiv:2401.04088); top-k, then softmax (Shazeer et al. 2017, arXiv:1701.06538;
    ``softmax_after=True``); device-limited groups (DeepSeek-V2, arXiv:2405.04434; ``group_top=1``); sigmoid with a
    correction bias and groups scored by their best two (DeepSeek-V3, arXiv:2412.19437; ``group_top=2``).

    Gradients flow from ``topk_weights`` to ``router_logits`` only; the selection is a constant.

    Args:
        router_logits: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or float64.
        top_k: number of experts per token, 1..num_experts; at most the experts in the kept groups when groups are
            used with ``group_fill="-inf"``.
        score: "softmax", "sigmoid", "sqrtsoftplus" (square root of softplus) or "none" (the logits themselves).
        softmax_after: rank the logits (plus ``bias``) and take the softmax over the chosen ones only. Needs
            ``score="softmax"``.
        bias: ``[num_experts]`` float, added for the selection only, used in float32; gets no gradient.
        num_groups: number of equal groups of consecutive experts; must divide num_experts. 1 means no groups.
        topk_groups: groups that are kept for a token; ties go to the lower group.
        group_top: a group is scored by the sum of this many best experts in it (at most all of them).
        group_fill: what the experts of other groups are ranked as: "-inf" or "0".
        renormalize: divide the weights of a token by (their sum + ``eps``).
        eps: see ``renormalize``; at least 0.
        scale: factor on the weights, applied last.
        nonfinite: "propagate": a NaN or +inf, or a row of -inf only, makes the weights of its row NaN, as in
            ``torch.softmax``. "sanitize": NaN counts as -inf and +inf as the largest finite float32; a row with
            nothing left gets ids -1 and weights 0; replaced entries get no gradient. "error": raise.

    Returns:
        ``Routing(topk_weights, topk_ids)``: ``[num_tokens, top_k]`` float32 (float64 for float64 logits) and
        ``[num_tokens, top_k]`` int32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, range or option; with ``nonfinite="error"``, a non-finite logit (names the
            first bad row; inside ``torch.compile`` this one is a RuntimeError). On a CUDA device, where finding out
            would mean waiting for it, it is an assertion on the device, as for PyTorch's own indices.
    """
    args = _checked(
        "route", router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups, group_top, group_fill,
        renormalize, eps, scale, nonfinite,
    )  # fmt: skip
    return Routing(*_call("route", _route, args))


def route_with_statistics(
    router_logits: Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    softmax_after: bool = False,
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_top: int = 1,
    group_fill: str = "-inf",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
    nonfinite: str = "propagate",
) -> RoutingWithStatistics:
    """:func:`route`, and in the same pass the sums over the tokens that balance and z losses are made of.

    The losses need no ``[num_tokens, num_experts]`` tensor then: with n tokens, ``num_experts / (top_k n^2) *
    (expert_counts * score_sums).sum()`` is the loss of the Switch Transformer (arXiv:2101.03961, equation 4) and
    ``z_sum / n`` the router z-loss of ST-MoE (arXiv:2202.08906, equation 5). Gradients flow from ``topk_weights``,
    ``score_sums`` and ``z_sum`` to ``router_logits``, which is all that is kept for backward beside ``topk_ids``. The
    sums are the same from run to run.

    Args:
        router_logits: as in :func:`route`, and so are the others.
        top_k: number of experts per token.
        score: "softmax", "sigmoid" or "sqrtsoftplus"; in ``score_sums`` the latter two are divided by their sum over
            all experts (DeepSeek-V3, arXiv:2412.19437, equation 18).
        softmax_after: see :func:`route`; ``score_sums`` has the softmax over all experts.
        bias: see :func:`route`; not part of any sum.
        num_groups: see :func:`route`.
        topk_groups: see :func:`route`.
        group_top: see :func:`route`.
        group_fill: see :func:`route`.
        renormalize: see :func:`route`.
        eps: see :func:`route`.
        scale: see :func:`route`; not part of any sum.
        nonfinite: see :func:`route`.

    Returns:
        :class:`RoutingWithStatistics`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: as :func:`route`, and for ``score="none"``.
    """
    args = _checked(
        "route_with_statistics", router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups, group_top,
        group_fill, renormalize, eps, scale, nonfinite,
    )  # fmt: skip
    if score == "none":
        raise ValueError('moe_ext.route_with_statistics: score must be one that sums to something, got "none"')
    weights, ids, score_sums, expert_counts, z_sum = _call("route_with_statistics", _route_with_statistics, args)
    return RoutingWithStatistics(weights, ids, score_sums, expert_counts, z_sum.squeeze(0))


def _checked(
    name: str, router_logits: Any, top_k: Any, score: Any, softmax_after: Any, bias: Any, num_groups: Any,
    topk_groups: Any, group_top: Any, group_fill: Any, renormalize: Any, eps: Any, scale: Any, nonfinite: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of the raw op, or the exception that says what is wrong with them."""
    _checks.is_tensor(name, "router_logits", router_logits, _checks.DATA_DTYPES)
    _checks.has_rank(name, "router_logits", router_logits, "num_tokens, num_experts")
    num_experts = router_logits.shape[1]
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: router_logits must have at least one expert, got num_experts 0")
    _checks.is_int(name, "top_k", top_k, low=1, high=num_experts, why=" (num_experts)")
    _checks.is_choice(name, "score", score, SCORES)
    _checks.is_bool(name, "softmax_after", softmax_after)
    if softmax_after and score != "softmax":
        raise ValueError(f'moe_ext.{name}: softmax_after=True needs score="softmax", got "{score}"')
    if bias is not None:
        _checks.is_tensor(name, "bias", bias, _checks.DATA_DTYPES)
        _checks.has_shape(name, "bias", bias, "num_experts", (num_experts,))
        _checks.same_device(name, "bias", bias, "router_logits", router_logits)
        bias = bias.detach().to(torch.float32)
    _check_groups(name, top_k, num_experts, num_groups, topk_groups, group_top, group_fill)
    _checks.is_bool(name, "renormalize", renormalize)
    _checks.is_number(name, "eps", eps, low=0.0)
    _checks.is_number(name, "scale", scale)
    _checks.is_choice(name, "nonfinite", nonfinite, NONFINITE)

    return (
        router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups,
        min(group_top, num_experts // num_groups), group_fill, renormalize, float(eps), float(scale), nonfinite,
    )  # fmt: skip


def _call(name: str, op: Any, args: tuple[Any, ...]) -> Any:
    nonfinite = args[-1]
    if nonfinite != "error" or torch.compiler.is_compiling():
        return call(op, *args)
    try:
        return call(op, *args)
    except RuntimeError as error:
        # Every argument has been checked, so what the kernel still objects to in the logits is their values.
        if "router_logits: row" not in str(error):
            raise
        raise ValueError(f"moe_ext.{name}: {error}") from None


def _check_groups(
    name: str, top_k: int, num_experts: int, num_groups: int, topk_groups: int, group_top: int, group_fill: str
) -> None:
    _checks.is_int(name, "num_groups", num_groups, low=1, high=num_experts, why=" (num_experts)")
    if num_experts % num_groups != 0:
        raise ValueError(f"moe_ext.{name}: num_groups must divide num_experts = {num_experts}, got {num_groups}")
    _checks.is_int(name, "topk_groups", topk_groups, low=1, high=num_groups, why=" (num_groups)")
    _checks.is_int(name, "group_top", group_top, low=1)
    _checks.is_choice(name, "group_fill", group_fill, GROUP_FILLS)
    eligible = topk_groups * (num_experts // num_groups)
    if num_groups > 1 and group_fill == "-inf" and top_k > eligible:
        raise ValueError(
            f"moe_ext.{name}: top_k must be at most {eligible}, the experts in topk_groups = {topk_groups} of "
            f"num_groups = {num_groups}, got {top_k}"
        )


@fake("route")
def _route_fake(router_logits: Tensor, top_k: int, *options: Any) -> tuple[Tensor, Tensor]:
    shape = (router_logits.shape[0], top_k)
    return router_logits.new_empty(shape, dtype=_wide(router_logits)), router_logits.new_empty(shape, dtype=torch.int32)


def _wide(router_logits: Tensor) -> torch.dtype:
    return torch.float64 if router_logits.dtype == torch.float64 else torch.float32


@fake("route_backward")
def _route_backward_fake(grad_weights: Tensor, router_logits: Tensor, topk_ids: Tensor, *options: Any) -> Tensor:
    return router_logits.new_empty(router_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    router_logits, _, score, softmax_after, _, _, _, _, _, renormalize, eps, scale, nonfinite = inputs
    topk_ids = output[1]
    ctx.mark_non_differentiable(topk_ids)
    ctx.save_for_backward(router_logits, topk_ids)
    ctx.options = (score, softmax_after, renormalize, eps, scale, nonfinite)


def _backward(ctx: Any, grad_weights: Tensor | None, grad_ids: None) -> tuple[Tensor | None, ...]:
    grad_logits = None
    if grad_weights is not None and ctx.needs_input_grad[0]:
        router_logits, topk_ids = ctx.saved_tensors
        grad_logits = _route_backward(grad_weights, router_logits, topk_ids, *ctx.options)
    return (grad_logits, *(None,) * 12)


# The same with statistics -----------------------------------------------------------------------------------------


@fake("route_with_statistics")
def _route_with_statistics_fake(router_logits: Tensor, top_k: int, *options: Any) -> tuple[Tensor, ...]:
    num_experts = router_logits.shape[1]
    return (
        *_route_fake(router_logits, top_k),
        router_logits.new_empty((num_experts,), dtype=_wide(router_logits)),
        router_logits.new_empty((num_experts,), dtype=torch.int32),
        router_logits.new_empty((1,), dtype=_wide(router_logits)),
    )


@fake("route_with_statistics_backward")
def _route_with_statistics_backward_fake(
    grad_weights: Tensor | None,
    grad_score_sums: Tensor | None,
    grad_z_sum: Tensor | None,
    router_logits: Tensor,
    topk_ids: Tensor,
    *options: Any,
) -> Tensor:
    return router_logits.new_empty(router_logits.shape)


def _statistics_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _setup_context(ctx, inputs, (output[0], output[1]))
    ctx.mark_non_differentiable(output[1], output[3])


def _statistics_backward(
    ctx: Any, grad_weights: Tensor | None, grad_ids: None, grad_sums: Tensor | None, grad_counts: None,
    grad_z: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    grad_logits = None
    if ctx.needs_input_grad[0] and not (grad_weights is None and grad_sums is None and grad_z is None):
        router_logits, topk_ids = ctx.saved_tensors
        grad_logits = _route_with_statistics_backward(
            grad_weights, grad_sums, grad_z, router_logits, topk_ids, *ctx.options
        )
    return (grad_logits, *(None,) * 12)


_route_backward = differentiable_once("route_backward")
_route = differentiable("route", setup_context=_setup_context, backward=_backward)
_route_with_statistics_backward = differentiable_once("route_with_statistics_backward")
_route_with_statistics = differentiable(
    "route_with_statistics", setup_context=_statistics_setup_context, backward=_statistics_backward
)
