"""fused_experts: the whole way of the data through the experts as one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call, differentiable, differentiable_once
from ._library import fake
from .packed_experts import PackedExperts

GATED_ACTIVATIONS = ("swiglu", "geglu", "geglu_tanh", "reglu", "clamped_swiglu")
UNGATED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
APPLY_WEIGHTS = ("output", "input")
SAVE = ("preact", "fp8", "none")
# Columns of MXFP8 that share a scale (OCP Microscaling Formats 1.0).
MXFP8_COLUMNS = 32


def fused_experts(
    x: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    activation: str = "swiglu",
    b_gate_up: Tensor | None = None,
    b_down: Tensor | None = None,
    interleaved: bool = False,
    transposed: bool = False,
    apply_weights: str = "output",
    save: str = "preact",
    workspace_limit: int | None = None,
    deterministic: bool = False,
    max_rows: int | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
    packed: PackedExperts | None = None,
) -> Tensor:
    """Sends each token through its experts and sums what comes back.

    ``y[t] = sum over k of topk_weights[t, k] * (W_down act(W_gate_up x[t] + b_gate_up) + b_down)`` with the matrices
    of expert ``topk_ids[t, k]``: the sparsely gated mixture of feed-forward experts of Shazeer et al. 2017
    (arXiv:1701.06538) with the gated activations of Shazeer 2020 (arXiv:2002.05202). Equal to :func:`permute`,
    :func:`gather_rows`, :func:`grouped_gemm`, the activation, :func:`grouped_gemm` and :func:`combine` in turn,
    without keeping what lies between. No token is dropped. A slot whose id is below 0 or not below num_experts adds
    nothing and its weight gets gradient zero.

    Matrix products and the final sum accumulate in float32 (float64 for float64). Autocast lowers ``x``, the weights
    and the biases, never ``topk_weights``. Gradients reach ``x``, both weights, both biases and ``topk_weights``;
    for backward only ``x``, the pre-activation, ``topk_weights`` and int32 indices are kept, about
    ``itemsize * (hidden_size + 2 * top_k * intermediate_size)`` bytes a token. Once differentiable.

    Args:
        x: ``[num_tokens, hidden_size]``, float32, bfloat16, float16 or float64.
        w_gate_up: ``[num_experts, 2 * intermediate_size, hidden_size]``, gate rows first; for an activation without
            a gate ``[num_experts, intermediate_size, hidden_size]``. In the dtype of ``x``, any strides.
        w_down: ``[num_experts, hidden_size, intermediate_size]`` in the dtype of ``x``, any strides.
        topk_weights: ``[num_tokens, top_k]``; used in float32 (float64 for float64 ``x``) whatever its float dtype,
            gradient in its own dtype.
        topk_ids: ``[num_tokens, top_k]`` int32 or int64.
        activation: of gate g and up u: "swiglu" silu(g) u, "geglu" gelu(g) u, "geglu_tanh" (the tanh approximation of
            gelu), "reglu" relu(g) u, "clamped_swiglu" (u + 1) g sigmoid(alpha g) with g at most ``limit`` and u
            within ``limit`` of 0. Without a gate: "silu", "gelu", "gelu_tanh", "relu", "relu2" (relu squared).
        b_gate_up: bias ``[num_experts, 2 * intermediate_size]`` (ungated: ``intermediate_size``).
        b_down: bias ``[num_experts, hidden_size]``.
        interleaved: gate and up rows alternate, gate first, in ``w_gate_up`` and ``b_gate_up``. Means nothing to an
            activation without a gate.
        transposed: ``w_gate_up`` is ``[num_experts, hidden_size, 2 * intermediate_size]`` and ``w_down``
            ``[num_experts, intermediate_size, hidden_size]``.
        apply_weights: "output", or "input": the weight multiplies ``x`` before the first product and nothing after.
        save: what backward finds: "preact" keeps the pre-activation, "none" recomputes it, "fp8" keeps it as MXFP8
            (e4m3 with a shared power of two for 32 columns; OCP Microscaling Formats 1.0): about half the bytes of
            16-bit data, and gradients that are as exact as three bits of mantissa. Not for float64.
        workspace_limit: upper bound in bytes for transient buffers of one row per slot; the work is then done in
            slabs. None for no bound.
        deterministic: also make the result of a token independent of the other tokens in the batch. Results are
            bitwise repeatable either way.
        max_rows: upper bound of how many slots of ``topk_ids`` name an expert, where it is known that most are
            sentinels (expert choice, dynamic top-k): buffers then have so many rows, not ``num_tokens * top_k``. None
            for no such knowledge.
        alpha: see "clamped_swiglu".
        limit: see "clamped_swiglu"; greater than 0, may be infinite.
        packed: a cache made of ``w_gate_up`` and ``w_down``, read in their stead where no gradient is recorded.

    Returns:
        y: ``[num_tokens, hidden_size]`` in the dtype of ``x``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, range or option.
        RuntimeError: ``workspace_limit`` is too small for the smallest slab; on the CPU, ``max_rows`` is too small. On
            a CUDA device, where finding out would mean waiting for it, that is an assertion on the device.
    """
    name = "fused_experts"
    _check_options(activation, interleaved, transposed, apply_weights, save, workspace_limit, deterministic)
    _checks.is_number(name, "alpha", alpha)
    _checks.is_number(name, "limit", limit, above=0.0)
    if max_rows is not None:
        _checks.is_int(name, "max_rows", max_rows, low=0)
    _check_data(x, w_gate_up, w_down, b_gate_up, b_down, activation, transposed)
    if save == "fp8" and x.dtype == torch.float64:
        raise TypeError(f'moe_ext.{name}: save="fp8" needs x in float32, bfloat16 or float16, got {x.dtype}')
    weights = _checks.routing_weights(name, topk_weights, x)
    _checks.is_tensor(name, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank(name, "topk_ids", topk_ids, "num_tokens, top_k")
    sizes = (x.shape[0], topk_ids.shape[1])
    _checks.has_shape(name, "topk_ids", topk_ids, "num_tokens, top_k", sizes)
    _checks.has_shape(name, "topk_weights", topk_weights, "num_tokens, top_k", sizes)
    _checks.same_device(name, "topk_ids", topk_ids, "x", x)
    _checks.same_device(name, "topk_weights", topk_weights, "x", x)

    if packed is not None:
        _check_packed(packed, w_gate_up, w_down, transposed)
    inputs = (x, w_gate_up, w_down, weights, b_gate_up, b_down)
    if not (torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)):
        # Nothing will come back for the pre-activation.
        save = "none"
        if packed is not None and not torch.compiler.is_compiling():
            if packed.are_tiled and x.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
                w_gate_up, w_down = packed.tiles(interleaved)
            else:
                w_gate_up, w_down = packed.weights()
            transposed = False
    outputs = call(
        _fused_experts, x, w_gate_up, w_down, weights, topk_ids, b_gate_up, b_down, activation, float(alpha),
        float(limit), interleaved, transposed, apply_weights, save, workspace_limit, deterministic,
        max_rows,
    )  # fmt: skip
    return outputs[0]


def _check_packed(packed: PackedExperts, w_gate_up: Tensor, w_down: Tensor, transposed: bool) -> None:
    if not isinstance(packed, PackedExperts):
        raise TypeError(f"moe_ext.fused_experts: packed must be a PackedExperts, got {type(packed).__name__}")
    if not packed.is_of(w_gate_up, w_down, transposed):
        raise ValueError("moe_ext.fused_experts: packed was made of other tensors than w_gate_up and w_down")


def _check_options(
    activation: str,
    interleaved: bool,
    transposed: bool,
    apply_weights: str,
    save: str,
    workspace_limit: int | None,
    deterministic: bool,
) -> None:
    name = "fused_experts"
    _checks.is_choice(name, "activation", activation, GATED_ACTIVATIONS + UNGATED_ACTIVATIONS)
    _checks.is_bool(name, "interleaved", interleaved)
    _checks.is_bool(name, "transposed", transposed)
    _checks.is_choice(name, "apply_weights", apply_weights, APPLY_WEIGHTS)
    _checks.is_choice(name, "save", save, SAVE)
    if workspace_limit is not None:
        _checks.is_int(name, "workspace_limit", workspace_limit, low=1)
    _checks.is_bool(name, "deterministic", deterministic)


def _check_data(
    x: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    b_gate_up: Tensor | None,
    b_down: Tensor | None,
    activation: str,
    transposed: bool,
) -> None:
    name = "fused_experts"
    _checks.is_tensor(name, "x", x, _checks.DATA_DTYPES)
    _checks.has_rank(name, "x", x, "num_tokens, hidden_size")
    hidden_size = x.shape[1]
    _checks.is_tensor(name, "w_down", w_down, _checks.DATA_DTYPES)
    down_axes = (
        "num_experts, intermediate_size, hidden_size" if transposed else ("num_experts, hidden_size, intermediate_size")
    )
    _checks.has_rank(name, "w_down", w_down, down_axes)
    num_experts = w_down.shape[0]
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: w_down must have at least one expert, got num_experts 0")
    intermediate_size = w_down.shape[1 if transposed else 2]
    down_sizes = (intermediate_size, hidden_size) if transposed else (hidden_size, intermediate_size)
    _checks.has_shape(name, "w_down", w_down, down_axes, (num_experts, *down_sizes))

    gated = activation in GATED_ACTIVATIONS
    width_axis = "2 * intermediate_size" if gated else "intermediate_size"
    width = 2 * intermediate_size if gated else intermediate_size
    up_axes = f"hidden_size, {width_axis}" if transposed else f"{width_axis}, hidden_size"
    up_sizes = (hidden_size, width) if transposed else (width, hidden_size)
    _checks.is_tensor(name, "w_gate_up", w_gate_up, _checks.DATA_DTYPES)
    _checks.has_shape(name, "w_gate_up", w_gate_up, f"num_experts, {up_axes}", (num_experts, *up_sizes))
    for label, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        _checks.same_dtype(name, label, weight, "x", x)
        _checks.same_device(name, label, weight, "x", x)
    biases = (
        ("b_gate_up", b_gate_up, f"num_experts, {width_axis}", width),
        ("b_down", b_down, "num_experts, hidden_size", hidden_size),
    )
    for label, bias, axes, size in biases:
        if bias is not None:
            _checks.is_tensor(name, label, bias, _checks.DATA_DTYPES)
            _checks.has_shape(name, label, bias, axes, (num_experts, size))
            _checks.same_dtype(name, label, bias, "x", x)
            _checks.same_device(name, label, bias, "x", x)


@fake("fused_experts")
def _fused_experts_fake(
    x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_weights: Tensor, topk_ids: Tensor, b_gate_up: Tensor | None,
    b_down: Tensor | None, activation: str, alpha: float, limit: float, interleaved: bool, transposed: bool,
    apply_weights: str, save: str, workspace_limit: int | None, deterministic: bool, max_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    num_tokens, top_k = topk_ids.shape
    num_rows = num_tokens * top_k if max_rows is None else torch.sym_min(num_tokens * top_k, max_rows)
    width = w_gate_up.shape[2 if transposed else 1]
    preact = x.new_empty((num_rows, width) if save == "preact" else (0,))
    if save == "fp8":
        inter = w_down.shape[1 if transposed else 2]
        parts = 2 if activation in GATED_ACTIVATIONS else 1
        scales = (inter + MXFP8_COLUMNS - 1) // MXFP8_COLUMNS
        preact = x.new_empty((num_rows, parts * (inter + scales)), dtype=torch.uint8)
    return (
        x.new_empty(x.shape),
        preact,
        topk_ids.new_empty((w_gate_up.shape[0] + 1,), dtype=torch.int32),
        topk_ids.new_empty((num_tokens, top_k), dtype=torch.int32),
    )


@fake("fused_experts_backward")
def _fused_experts_backward_fake(
    grad_y: Tensor, x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_weights: Tensor, b_gate_up: Tensor | None,
    b_down: Tensor | None, preact: Tensor, expert_offsets: Tensor, slot_to_row: Tensor,
    activation: str, alpha: float, limit: float, interleaved: bool, transposed: bool, apply_weights: str,
    workspace_limit: int | None, deterministic: bool, x_grad: bool, weight_grads: bool, routing_grad: bool,
    max_rows: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = (
        (x, x_grad),
        (w_gate_up, weight_grads),
        (w_down, weight_grads),
        (topk_weights, routing_grad),
        (b_gate_up, weight_grads),
        (b_down, weight_grads),
    )
    return tuple(
        x.new_empty((0,)) if tensor is None or not grad else tensor.new_empty(tensor.shape) for tensor, grad in wanted
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The dispatcher leaves out a last argument that has its default value.
    ctx.num_inputs = len(inputs)
    ctx.max_rows = inputs[16] if len(inputs) > 16 else None
    x, w_gate_up, w_down, topk_weights, _, b_gate_up, b_down, *options = inputs[:16]
    *activation_options, save, workspace_limit, deterministic = options
    _, preact, expert_offsets, slot_to_row = output
    ctx.mark_non_differentiable(preact, expert_offsets, slot_to_row)
    ctx.save_for_backward(
        x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, None if save == "none" else preact,
        expert_offsets, slot_to_row,
    )  # fmt: skip
    ctx.options = (*activation_options, workspace_limit, deterministic)


def _backward(ctx: Any, grad_y: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    no_grads = (None,) * ctx.num_inputs
    if grad_y is None:
        return no_grads
    x, *others = ctx.saved_tensors
    w_gate_up, w_down, topk_weights, b_gate_up, b_down, preact, *index = others
    if preact is None:
        preact = x.new_empty((0,))
    needs_x, needs_gate_up, needs_down, needs_weights, _, needs_b_gate_up, needs_b_down = ctx.needs_input_grad[:7]
    grads = _fused_experts_backward(
        grad_y, x, w_gate_up, w_down, topk_weights, b_gate_up, b_down, preact, *index, *ctx.options,
        needs_x, needs_gate_up or needs_down or needs_b_gate_up or needs_b_down, needs_weights, ctx.max_rows,
    )  # fmt: skip
    grad_x, grad_w_gate_up, grad_w_down, grad_topk_weights, grad_b_gate_up, grad_b_down = grads
    return (
        grad_x if needs_x else None,
        grad_w_gate_up if needs_gate_up else None,
        grad_w_down if needs_down else None,
        grad_topk_weights if needs_weights else None,
        None,
        grad_b_gate_up if needs_b_gate_up else None,
        grad_b_down if needs_b_down else None,
        *no_grads[7:],
    )


_fused_experts_backward = differentiable_once("fused_experts_backward")
_fused_experts = differentiable(
    "fused_experts", setup_context=_setup_context, backward=_backward, autocast=(0, 1, 2, 5, 6)
)
