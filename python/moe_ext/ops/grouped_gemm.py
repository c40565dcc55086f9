"""grouped_gemm: one matrix per expert, applied to that expert's rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import below_autograd, differentiable
from ._library import LIBRARY, NAMESPACE, fake, raw


def grouped_gemm(
    rows: Tensor,
    weight: Tensor,
    expert_offsets: Tensor,
    *,
    bias: Tensor | None = None,
    transposed: bool = False,
    gather: Tensor | None = None,
) -> Tensor:
    """Multiplies the rows of each expert by its matrix: ``out[r] = weight[e] @ rows[r] + bias[e]``.

    Row r belongs to expert e when ``expert_offsets[e] <= r < expert_offsets[e + 1]``; experts may have no rows. Sums
    are in float32 (float64 for float64). Under autocast ``rows``, ``weight`` and ``bias`` are lowered. Second
    derivatives exist.

    Args:
        rows: ``[num_rows, in_features]``, float32, bfloat16, float16 or float64; with ``gather`` any number of rows.
        weight: ``[num_experts, out_features, in_features]`` in the dtype of ``rows``, any strides.
        expert_offsets: ``[num_experts + 1]`` int32, exclusive prefix sum of the rows per expert.
        bias: ``[num_experts, out_features]`` in the dtype of ``rows``.
        transposed: ``weight`` is ``[num_experts, in_features, out_features]`` instead.
        gather: ``[num_rows]`` int32: row r of the product reads ``rows[gather[r]]``. Entries at and past
            ``expert_offsets[num_experts]`` are not read.

    Returns:
        ``[num_rows, out_features]`` in the dtype of ``rows``; rows of no expert are zero.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device.
        RuntimeError: ``expert_offsets`` falls or ends past the rows, or ``gather`` names rows that do not exist (found
            on the CPU only).
    """
    name = "grouped_gemm"
    _checks.is_tensor(name, "rows", rows, _checks.DATA_DTYPES)
    _checks.has_rank(name, "rows", rows, "num_rows, in_features")
    _checks.is_tensor(name, "weight", weight, _checks.DATA_DTYPES)
    _checks.is_offsets(name, "expert_offsets", expert_offsets)
    _checks.is_bool(name, "transposed", transposed)
    num_experts = expert_offsets.shape[0] - 1
    axes = "num_experts, in_features, out_features" if transposed else "num_experts, out_features, in_features"
    _checks.has_rank(name, "weight", weight, axes)
    out_features = weight.shape[2 if transposed else 1]
    sizes = (rows.shape[1], out_features) if transposed else (out_features, rows.shape[1])
    _checks.has_shape(name, "weight", weight, axes, (num_experts, *sizes))
    _checks.same_dtype(name, "weight", weight, "rows", rows)
    _checks.same_device(name, "weight", weight, "rows", rows)
    _checks.same_device(name, "expert_offsets", expert_offsets, "rows", rows)
    if bias is not None:
        _checks.is_tensor(name, "bias", bias, _checks.DATA_DTYPES)
        _checks.has_shape(name, "bias", bias, "num_experts, out_features", (num_experts, out_features))
        _checks.same_dtype(name, "bias", bias, "rows", rows)
        _checks.same_device(name, "bias", bias, "rows", rows)
    if gather is not None:
        _checks.is_tensor(name, "gather", gather, (torch.int32,))
        _checks.has_rank(name, "gather", gather, "num_rows")
        _checks.same_device(name, "gather", gather, "rows", rows)
    return _grouped_gemm(rows, weight, expert_offsets, bias, gather, transposed)


# The product ------------------------------------------------------------------------------------------------------


@fake("grouped_gemm")
def _grouped_gemm_fake(
    rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor | None, gather: Tensor | None, transposed: bool
) -> Tensor:
    num_rows = rows.shape[0] if gather is None else gather.shape[0]
    return rows.new_empty((num_rows, weight.shape[2 if transposed else 1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, expert_offsets, _, gather, ctx.transposed = inputs
    ctx.num_rows_in = rows.shape[0]
    # Each operand serves the gradient of the other.
    ctx.save_for_backward(
        rows if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None, expert_offsets, gather
    )


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_rows = grad_weight = grad_bias = None
    if grad_out is not None:
        rows, weight, expert_offsets, gather = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            grad_rows = _grouped_gemm(grad_out, weight, expert_offsets, None, None, not ctx.transposed)
            grad_rows = _undo_gather(grad_rows, expert_offsets, gather, ctx.num_rows_in)
        if ctx.needs_input_grad[1]:
            grad_weight = _grouped_gemm_wgrad(rows, grad_out, expert_offsets, gather, ctx.transposed)
        if ctx.needs_input_grad[3]:
            grad_bias = _segment_sum(grad_out, expert_offsets)
    return grad_rows, grad_weight, None, grad_bias, None, None


def _undo_gather(grad: Tensor, expert_offsets: Tensor, gather: Tensor | None, num_rows: int) -> Tensor:
    """Adds up the gradients of rows that ``gather`` read more than once: in float32, in a fixed order."""
    if gather is None:
        return grad
    position = torch.arange(gather.shape[0], dtype=torch.int32, device=gather.device)
    source = torch.where(position < expert_offsets[-1], gather, num_rows)
    source, order = torch.sort(source, stable=True)
    bounds = torch.arange(num_rows + 1, dtype=torch.int32, device=gather.device)
    segments = torch.searchsorted(source, bounds, out_int32=True)
    return _segment_sum(grad.index_select(0, order), segments)


# The gradient of the weight ---------------------------------------------------------------------------------------


@fake("grouped_gemm_wgrad")
def _grouped_gemm_wgrad_fake(
    rows: Tensor, grad_out: Tensor, expert_offsets: Tensor, gather: Tensor | None, transposed: bool
) -> Tensor:
    sizes = (rows.shape[1], grad_out.shape[1]) if transposed else (grad_out.shape[1], rows.shape[1])
    return rows.new_empty((expert_offsets.shape[0] - 1, *sizes))


def _wgrad_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, grad_out, expert_offsets, gather, ctx.transposed = inputs
    ctx.num_rows_in = rows.shape[0]
    ctx.save_for_backward(
        rows if ctx.needs_input_grad[1] else None, grad_out if ctx.needs_input_grad[0] else None, expert_offsets, gather
    )


def _wgrad_backward(ctx: Any, grad_weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """The weight gradient is bilinear: a gradient of it takes the place of the weight in the product."""
    grad_of_rows = grad_of_grad_out = None
    if grad_weight is not None:
        rows, grad_out, expert_offsets, gather = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            grad_of_rows = _grouped_gemm(grad_out, grad_weight, expert_offsets, None, None, not ctx.transposed)
            grad_of_rows = _undo_gather(grad_of_rows, expert_offsets, gather, ctx.num_rows_in)
        if ctx.needs_input_grad[1]:
            grad_of_grad_out = _grouped_gemm(rows, grad_weight, expert_offsets, None, gather, ctx.transposed)
    return grad_of_rows, grad_of_grad_out, None, None, None


@fake("grouped_gemm_wgrad_")
def _grouped_gemm_wgrad_accumulate_fake(*args: Any) -> None:
    return None


def _grouped_gemm_wgrad_accumulate_autograd(keyset: Any, *args: Any) -> None:
    """Writing into a gradient is no step of a differentiable computation: refuse to pretend that it is one."""
    if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        raise NotImplementedError(
            f"{NAMESPACE}::grouped_gemm_wgrad_ accumulates in place and has no derivative: use torch.no_grad()"
        )
    below_autograd(raw("grouped_gemm_wgrad_"), keyset, *args)


# The gradient of the bias -----------------------------------------------------------------------------------------


@fake("segment_sum")
def _segment_sum_fake(rows: Tensor, expert_offsets: Tensor) -> Tensor:
    return rows.new_empty((expert_offsets.shape[0] - 1, rows.shape[1]))


def _segment_sum_setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    rows, expert_offsets = inputs
    ctx.num_rows = rows.shape[0]
    ctx.save_for_backward(expert_offsets)


def _segment_sum_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
    grad_rows = None
    if grad is not None and ctx.needs_input_grad[0]:
        (expert_offsets,) = ctx.saved_tensors
        position = torch.arange(ctx.num_rows, dtype=torch.int32, device=grad.device)
        expert = torch.searchsorted(expert_offsets[1:].contiguous(), position, right=True)
        # Rows past the last expert take the row of zeros at the end.
        table = torch.cat((grad, grad.new_zeros((1, grad.shape[1]))))
        grad_rows = table.index_select(0, expert)
    return grad_rows, None


_segment_sum = differentiable("segment_sum", setup_context=_segment_sum_setup_context, backward=_segment_sum_backward)
_grouped_gemm_wgrad = differentiable("grouped_gemm_wgrad", setup_context=_wgrad_setup_context, backward=_wgrad_backward)
_grouped_gemm = differentiable("grouped_gemm", setup_context=_setup_context, backward=_backward, autocast=(0, 1, 3))
LIBRARY.impl("grouped_gemm_wgrad_", _grouped_gemm_wgrad_accumulate_autograd, "Autograd", with_keyset=True)
