"""soft_dispatch and soft_combine: tokens mixed into slots, and slots back into tokens (Soft MoE).

Both are a product with the weights of a softmax, and one op, ``soft_mix``: over tokens with ``dispatch``, else over
slots. The weights ``[B, m, s]`` are formed block by block inside its kernels and never stored. Backward keeps data,
logits and result, and two numbers per column (row) of the weights, with which it forms them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable
from ._library import fake


def soft_dispatch(x: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The input of each slot, a convex combination of the tokens of its sequence: ``softmax(logits, dim=1)^T x``.

    Soft MoE, Puigcerver et al. 2023 (arXiv:2308.00951, equation 1). The softmax is computed in float32 (float64 for
    float64 data) and rounded to the dtype of ``x`` for the product, whose sums are float32 (float64); autocast lowers
    ``x`` and leaves the logits alone. A slot of a sequence without a single token is zero. A NaN or +inf among the
    logits of a slot, or -inf alone, makes it NaN, as in ``torch.softmax``. Backward keeps the arguments, the result and
    two numbers per slot, and nothing else of the size of the logits. Second derivatives exist.

    Args:
        x: ``[batch, num_tokens, hidden_size]``, float32, bfloat16, float16 or float64.
        logits: ``[batch, num_tokens, num_slots]``, of any of these dtypes.
        token_mask: ``[batch, num_tokens]`` bool; False for padding, which no slot sees. None: no padding.

    Returns:
        slots: ``[batch, num_slots, hidden_size]`` in the dtype of ``x``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
    """
    name = "soft_dispatch"
    _check(name, "x", x, "batch, num_tokens, hidden_size", logits, token_mask, axis=1)
    return _mix(x, logits, token_mask, dispatch=True)


def soft_combine(slot_outputs: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The output of each token, a convex combination of the slots: ``softmax(logits, dim=2) slot_outputs``.

    Soft MoE, Puigcerver et al. 2023 (arXiv:2308.00951, equation 3). Precision, autocast, derivatives and what is not
    finite as in :func:`soft_dispatch`.

    Args:
        slot_outputs: ``[batch, num_slots, hidden_size]``, float32, bfloat16, float16 or float64.
        logits: ``[batch, num_tokens, num_slots]``, of any of these dtypes.
        token_mask: ``[batch, num_tokens]`` bool; False for padding, whose output is zero. None: no padding.

    Returns:
        y: ``[batch, num_tokens, hidden_size]`` in the dtype of ``slot_outputs``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
    """
    name = "soft_combine"
    _check(name, "slot_outputs", slot_outputs, "batch, num_slots, hidden_size", logits, token_mask, axis=2)
    return _mix(slot_outputs, logits, token_mask, dispatch=False)


def _check(name: str, data_name: str, data: Any, axes: str, logits: Any, token_mask: Any, *, axis: int) -> None:
    _checks.is_tensor(name, data_name, data, _checks.DATA_DTYPES)
    _checks.has_rank(name, data_name, data, axes)
    _checks.is_tensor(name, "logits", logits, _checks.DATA_DTYPES)
    _checks.has_rank(name, "logits", logits, "batch, num_tokens, num_slots")
    _checks.same_device(name, "logits", logits, data_name, data)
    if logits.shape[0] != data.shape[0] or logits.shape[axis] != data.shape[1]:
        raise ValueError(
            f"moe_ext.{name}: logits must be [batch, num_tokens, num_slots] with the sizes of {data_name} [{axes}] = "
            f"{tuple(data.shape)}, got shape {tuple(logits.shape)}"
        )
    if token_mask is not None:
        _checks.is_tensor(name, "token_mask", token_mask, (torch.bool,))
        _checks.has_shape(name, "token_mask", token_mask, "batch, num_tokens", tuple(logits.shape[:2]))
        _checks.same_device(name, "token_mask", token_mask, data_name, data)


def _mix(data: Tensor, logits: Tensor, token_mask: Tensor | None, *, dispatch: bool) -> Tensor:
    is_double = data.dtype == torch.float64
    if is_double != (logits.dtype == torch.float64):
        logits = logits.to(torch.float64 if is_double else torch.float32)
    mixed, _ = call(_soft_mix, data, logits, token_mask, dispatch)
    result: Tensor = mixed
    return result


def _compute_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


@fake("soft_mix")
def _soft_mix_fake(values: Tensor, logits: Tensor, token_mask: Tensor | None, dispatch: bool) -> tuple[Tensor, Tensor]:
    batch, num_tokens, num_slots = logits.shape
    num_results = num_slots if dispatch else num_tokens
    return (
        values.new_empty((batch, num_results, values.shape[2])),
        values.new_empty((2, batch, num_results), dtype=_compute_dtype(values)),
    )


@fake("soft_mix_backward")
def _soft_mix_backward_fake(
    grad_mixed: Tensor, values: Tensor, logits: Tensor, token_mask: Tensor | None, mixed: Tensor, statistics: Tensor,
    dispatch: bool, values_grad: bool, logits_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        values.new_empty(values.shape if values_grad else (0,)),
        logits.new_empty(logits.shape if logits_grad else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, logits, token_mask, ctx.dispatch = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(values, logits, token_mask, *output)


def _backward(ctx: Any, grad_mixed: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_mixed is None:
        return None, None, None, None
    needs_values, needs_logits = ctx.needs_input_grad[:2]
    grad_values, grad_logits = _soft_mix_backward(
        grad_mixed, *ctx.saved_tensors, ctx.dispatch, needs_values, needs_logits
    )
    return grad_values if needs_values else None, grad_logits if needs_logits else None, None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_mixed, values, logits, token_mask, _, _, ctx.dispatch, *ctx.wanted = inputs
    ctx.save_for_backward(grad_mixed, values, logits, token_mask)


def _double_backward(
    ctx: Any, grad_grad_values: Tensor | None, grad_grad_logits: Tensor | None
) -> tuple[Tensor | None, ...]:
    """In plain torch, with all the weights in memory; so there are derivatives of any order.

    ``mixed`` and ``statistics`` are functions of values and logits, and are treated as such: what depends on them is
    in the gradients of those two.
    """
    grad_mixed, values, logits, token_mask = ctx.saved_tensors
    dtype, dispatch = _compute_dtype(values), ctx.dispatch
    g, v = grad_mixed.to(dtype), values.to(dtype)
    # Gradients that nobody asked for were empty tensors, and so are theirs.
    a = grad_grad_values.to(dtype) if grad_grad_values is not None and ctx.wanted[0] else torch.zeros_like(v)
    c = grad_grad_logits.to(dtype) if grad_grad_logits is not None and ctx.wanted[1] else v.new_zeros(logits.shape)
    weights, axis = _weights(logits.to(dtype), token_mask, dispatch), 1 if dispatch else 2

    def mean(x: Tensor) -> Tensor:
        return (weights * x).sum(axis, keepdim=True)

    def pairs(of_results: Tensor, of_values: Tensor) -> Tensor:
        return of_values @ of_results.mT if dispatch else of_results @ of_values.mT

    # The scalar <a, grad_values> + <c, grad_logits> is <g, weights a> + <g, through v>.
    through = weights * (c - mean(c))
    dots = pairs(g, v)
    to_results, to_values = (lambda w: w.mT, lambda w: w) if dispatch else (lambda w: w, lambda w: w.mT)
    grad_of_weights = pairs(g, a) + (c - mean(c)) * dots - c * mean(dots)
    return (
        (to_results(weights) @ a + to_results(through) @ v).to(grad_mixed.dtype) if ctx.needs_input_grad[0] else None,
        (to_values(through) @ g).to(values.dtype) if ctx.needs_input_grad[1] else None,
        (weights * (grad_of_weights - mean(grad_of_weights))).to(logits.dtype) if ctx.needs_input_grad[2] else None,
        *(None,) * 6,
    )


def _weights(logits: Tensor, token_mask: Tensor | None, dispatch: bool) -> Tensor:
    """All the weights, [B, m, s]."""
    if token_mask is None:
        return logits.softmax(1 if dispatch else 2)
    hidden = ~token_mask.unsqueeze(2)
    weights = logits.masked_fill(hidden, float("-inf")).softmax(1) if dispatch else logits.softmax(2)
    # A column of hidden tokens only is NaN before.
    return weights.masked_fill(hidden, 0.0)


_soft_mix_backward = differentiable(
    "soft_mix_backward", setup_context=_backward_setup_context, backward=_double_backward
)
_soft_mix = differentiable("soft_mix", setup_context=_setup_context, backward=_backward, autocast=(0,))
