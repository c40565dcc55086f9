"""gather_rows: tokens to rows sorted by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable
from ._library import fake
from .types import Permutation


def gather_rows(x: Tensor, perm: Permutation) -> Tensor:
    """Copies each token to the rows of its experts: ``rows[r] = x[row_to_slot[r] // top_k]``.

    Under autocast ``x`` is lowered. The gradient sums the rows of a token over k = 0..top_k-1 in float32, rounded
    once; second derivatives exist.

    Args:
        x: ``[num_tokens, hidden_size]``, float32, bfloat16, float16 or float64.
        perm: what :func:`moe_ext.permute` returned for the ids of these tokens.

    Returns:
        rows: ``[num_tokens * top_k, hidden_size]`` in the dtype of ``x``; rows of no expert are zero.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: ``perm`` names slots that do not exist (found on the CPU only).
    """
    name = "gather_rows"
    _checks.is_tensor(name, "x", x, _checks.DATA_DTYPES)
    _checks.has_rank(name, "x", x, "num_tokens, hidden_size")
    _checks.is_permutation(name, perm)
    expert_offsets, row_to_slot, slot_to_row = perm
    if x.shape[0] != slot_to_row.shape[0]:
        raise ValueError(
            f"moe_ext.{name}: x must have the num_tokens = {slot_to_row.shape[0]} of perm, got shape {tuple(x.shape)}"
        )
    _checks.same_device(name, "perm", row_to_slot, "x", x)
    return call(_gather_rows, x, row_to_slot, expert_offsets, slot_to_row.shape[1])


def _inverse(index: Tensor, size: int) -> Tensor:
    """``inverse[index[i]] = i`` for the entries of the int32 ``index`` that are not negative, else -1."""
    positions = torch.arange(index.numel(), dtype=torch.int32, device=index.device)
    target = torch.where(index < 0, size, index).reshape(-1).to(torch.int64)
    # One place more than needed: all negative entries land in it.
    return torch.full((size + 1,), -1, dtype=torch.int32, device=index.device).scatter(0, target, positions)[:size]


@fake("gather_rows")
def _gather_rows_fake(x: Tensor, row_to_slot: Tensor, expert_offsets: Tensor, top_k: int) -> Tensor:
    return x.new_empty((row_to_slot.shape[0], x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_to_slot, _, ctx.top_k = inputs
    ctx.num_tokens = x.shape[0]
    ctx.save_for_backward(row_to_slot)


def _backward(ctx: Any, grad_rows: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    grad_x = None
    if grad_rows is not None and ctx.needs_input_grad[0]:
        (row_to_slot,) = ctx.saved_tensors
        slot_to_row = _inverse(row_to_slot, ctx.num_tokens * ctx.top_k).view(ctx.num_tokens, ctx.top_k)
        grad_x = _gather_rows_backward(grad_rows, slot_to_row)
    return grad_x, None, None, None


@fake("gather_rows_backward")
def _gather_rows_backward_fake(grad_rows: Tensor, slot_to_row: Tensor) -> Tensor:
    return grad_rows.new_empty((slot_to_row.shape[0], grad_rows.shape[1]))


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_rows, slot_to_row = inputs
    ctx.num_rows = grad_rows.shape[0]
    ctx.save_for_backward(slot_to_row)


def _double_backward(ctx: Any, grad_grad_x: Tensor | None) -> tuple[Tensor | None, None]:
    grad_rows = None
    if grad_grad_x is not None and ctx.needs_input_grad[0]:
        (slot_to_row,) = ctx.saved_tensors
        row_to_slot = _inverse(slot_to_row, ctx.num_rows)
        # Of the offsets the gather needs only where the rows end, so one expert that owns them all will do.
        num_used = (slot_to_row >= 0).sum(dtype=torch.int32)
        expert_offsets = torch.stack((torch.zeros_like(num_used), num_used))
        grad_rows = _gather_rows(grad_grad_x, row_to_slot, expert_offsets, slot_to_row.shape[1])
    return grad_rows, None


_gather_rows_backward = differentiable(
    "gather_rows_backward", setup_context=_backward_setup_context, backward=_double_backward
)
_gather_rows = differentiable("gather_rows", setup_context=_setup_context, backward=_backward, autocast=(0,))
