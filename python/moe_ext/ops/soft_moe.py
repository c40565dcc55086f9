"""soft_dispatch and soft_combine: tokens mixed into slots, and slots back into tokens (Soft MoE).

Both are a softmax of the logits and a matrix product. Backward keeps the logits and the data, and forms the softmax
``[B, m, s]`` again: kept, it would be the largest tensor of the layer, twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable
from ._library import LIBRARY


def soft_dispatch(x: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The input of each slot, a convex combination of the tokens of its sequence: ``softmax(logits, dim=1)^T x``.

    Soft MoE, Puigcerver et al. 2023 (arXiv:2308.00951, equation 1). The softmax is computed in float32 (float64 for
    float64 data) and rounded to the dtype of ``x`` for the product; autocast lowers ``x`` and leaves the logits alone.
    A slot of a sequence without a single token is zero. Second derivatives exist.

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
    slots: Tensor = call(_soft_dispatch, x, logits, token_mask)
    return slots


def soft_combine(slot_outputs: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The output of each token, a convex combination of the slots: ``softmax(logits, dim=2) slot_outputs``.

    Soft MoE, Puigcerver et al. 2023 (arXiv:2308.00951, equation 3). Precision, autocast and derivatives as in
    :func:`soft_dispatch`.

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
    y: Tensor = call(_soft_combine, slot_outputs, logits, token_mask)
    return y


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


def _wide(logits: Tensor, data: Tensor) -> Tensor:
    is_double = torch.float64 in (logits.dtype, data.dtype)
    return logits.to(torch.float64 if is_double else torch.float32)


def _dispatch_weights(logits: Tensor, data: Tensor, token_mask: Tensor | None) -> Tensor:
    """[B, m, s] in float32: columns sum to 1 over the tokens that are not masked."""
    wide = _wide(logits, data)
    if token_mask is None:
        return wide.softmax(dim=1)
    hidden = ~token_mask.unsqueeze(2)
    # A column of -inf only is NaN before it is filled again.
    return wide.masked_fill(hidden, float("-inf")).softmax(dim=1).masked_fill(hidden, 0.0)


def _combine_weights(logits: Tensor, data: Tensor, token_mask: Tensor | None) -> Tensor:
    """[B, m, s] in float32: rows sum to 1, those of masked tokens to 0."""
    weights = _wide(logits, data).softmax(dim=2)
    return weights if token_mask is None else weights.masked_fill(~token_mask.unsqueeze(2), 0.0)


def _through_softmax(weights: Tensor, grad_weights: Tensor, dim: int, logits: Tensor) -> Tensor:
    """The gradient of the logits, where that of their softmax over ``dim`` is known."""
    # In one pass; written out, it would be four, and three tensors of this size.
    grad_weights = grad_weights.to(weights.dtype)
    return torch.ops.aten._softmax_backward_data(grad_weights, weights, dim, weights.dtype).to(logits.dtype)


# Ops, though they are Python: a graph that a compiler sees inside would give it the softmax to keep for backward.


def _dispatch(x: Tensor, logits: Tensor, token_mask: Tensor | None) -> Tensor:
    return _dispatch_weights(logits, x, token_mask).to(x.dtype).mT @ x


def _combine(slot_outputs: Tensor, logits: Tensor, token_mask: Tensor | None) -> Tensor:
    return _combine_weights(logits, slot_outputs, token_mask).to(slot_outputs.dtype) @ slot_outputs


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dispatch_backward(ctx: Any, grad_slots: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    x, logits, token_mask = ctx.saved_tensors
    grad_x = grad_logits = None
    if grad_slots is not None:
        weights = _dispatch_weights(logits, x, token_mask)
        if ctx.needs_input_grad[0]:
            grad_x = weights.to(x.dtype) @ grad_slots
        if ctx.needs_input_grad[1]:
            grad_logits = _through_softmax(weights, x @ grad_slots.mT, 1, logits)
    return grad_x, grad_logits, None


def _combine_backward(ctx: Any, grad_y: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    slot_outputs, logits, token_mask = ctx.saved_tensors
    grad_slots = grad_logits = None
    if grad_y is not None:
        weights = _combine_weights(logits, slot_outputs, token_mask)
        if ctx.needs_input_grad[0]:
            grad_slots = weights.to(slot_outputs.dtype).mT @ grad_y
        if ctx.needs_input_grad[1]:
            grad_logits = _through_softmax(weights, grad_y @ slot_outputs.mT, 2, logits)
    return grad_slots, grad_logits, None


LIBRARY.define("soft_dispatch(Tensor x, Tensor logits, Tensor? token_mask) -> Tensor")
LIBRARY.define("soft_combine(Tensor slot_outputs, Tensor logits, Tensor? token_mask) -> Tensor")
LIBRARY.impl("soft_dispatch", _dispatch, "CompositeExplicitAutograd")
LIBRARY.impl("soft_combine", _combine, "CompositeExplicitAutograd")
_soft_dispatch = differentiable(
    "soft_dispatch", setup_context=_setup_context, backward=_dispatch_backward, autocast=(0,)
)
_soft_combine = differentiable("soft_combine", setup_context=_setup_context, backward=_combine_backward, autocast=(0,))
