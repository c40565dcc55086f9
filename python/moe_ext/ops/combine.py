"""combine: rows sorted by expert back to tokens, weighted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable
from ._library import fake
from .types import Permutation


def combine(rows: Tensor, topk_weights: Tensor, perm: Permutation) -> Tensor:
    """Sums the rows of each token: ``y[t] = sum over k of topk_weights[t, k] * rows[slot_to_row[t, k]]``.

    The sum runs over k = 0..top_k-1 in float32 (float64 for float64) and is rounded once, so it is bitwise
    repeatable. Slots without an expert add nothing and their weights get gradient zero. Autocast lowers ``rows`` and
    leaves ``topk_weights`` alone. Second derivatives exist.

    Args:
        rows: ``[num_tokens * top_k, hidden_size]``, float32, bfloat16, float16 or float64.
        topk_weights: ``[num_tokens, top_k]``; used in float32 (float64 for float64 ``rows``) whatever its float
            dtype, gradient in its own dtype.
        perm: what :func:`moe_ext.permute` returned for the ids of these tokens.

    Returns:
        y: ``[num_tokens, hidden_size]`` in the dtype of ``rows``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: ``perm`` names rows that do not exist (found on the CPU only).
    """
    name = "combine"
    _checks.is_tensor(name, "rows", rows, _checks.DATA_DTYPES)
    _checks.is_permutation(name, perm)
    slot_to_row = perm[2]
    num_tokens, top_k = slot_to_row.shape
    _checks.has_rank(name, "rows", rows, "num_tokens * top_k, hidden_size")
    _checks.has_shape(name, "rows", rows, "num_tokens * top_k, hidden_size", (num_tokens * top_k, rows.shape[1]))
    weights = _checks.routing_weights(name, topk_weights, rows)
    _checks.has_shape(name, "topk_weights", topk_weights, "num_tokens, top_k", (num_tokens, top_k))
    _checks.same_device(name, "topk_weights", topk_weights, "rows", rows)
    _checks.same_device(name, "perm", slot_to_row, "rows", rows)
    return call(_combine, rows, weights, slot_to_row)


@fake("combine")
def _combine_fake(rows: Tensor, topk_weights: Tensor, slot_to_row: Tensor) -> Tensor:
    return rows.new_empty((slot_to_row.shape[0], rows.shape[1]))


@fake("combine_backward")
def _combine_backward_fake(
    grad_y: Tensor, rows: Tensor, topk_weights: Tensor, slot_to_row: Tensor
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), topk_weights.new_empty(topk_weights.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    if grad_y is None:
        return None, None, None
    grad_rows, grad_weights = _combine_backward(grad_y, *ctx.saved_tensors)
    return (
        grad_rows if ctx.needs_input_grad[0] else None,
        grad_weights if ctx.needs_input_grad[1] else None,
        None,
    )


def _backward_setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _double_backward(
    ctx: Any, grad_grad_rows: Tensor | None, grad_grad_weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    """combine is linear in rows and in weights, so its backward differentiates into the same two ops."""
    grad_y, rows, topk_weights, slot_to_row = ctx.saved_tensors
    if grad_grad_rows is None:
        grad_grad_rows = torch.zeros_like(rows)
    if grad_grad_weights is None:
        grad_grad_weights = torch.zeros_like(topk_weights)
    grad_of_grad_y = grad_of_rows = grad_of_weights = None
    if ctx.needs_input_grad[0]:
        grad_of_grad_y = _combine(grad_grad_rows, topk_weights, slot_to_row)
        grad_of_grad_y = grad_of_grad_y + _combine(rows, grad_grad_weights, slot_to_row)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_of_rows, grad_of_weights = _combine_backward(grad_y, grad_grad_rows, grad_grad_weights, slot_to_row)
    return (
        grad_of_grad_y,
        grad_of_rows if ctx.needs_input_grad[1] else None,
        grad_of_weights if ctx.needs_input_grad[2] else None,
        None,
    )


_combine_backward = differentiable("combine_backward", setup_context=_backward_setup_context, backward=_double_backward)
_combine = differentiable("combine", setup_context=_setup_context, backward=_backward, autocast=(0,))
