"""fused_experts_int8: the experts with weights in int8, for inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import _checks
from ._autograd import differentiable
from ._library import NAMESPACE, fake
from .fused_experts import APPLY_WEIGHTS, GATED_ACTIVATIONS, UNGATED_ACTIVATIONS

INT8_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Int8Experts(NamedTuple):
    """The weights of all experts in int8, with a float32 scale for each output channel: a weight is ``value * scale``.

    Ordinary tensors in ordinary layout, which can be saved in a state dict; no kernel needs them packed.

    Attributes:
        w_gate_up: ``[num_experts, 2 * intermediate_size, hidden_size]`` int8 (without a gate ``intermediate_size``).
        w_gate_up_scale: float32, one for each row of ``w_gate_up``.
        w_down: ``[num_experts, hidden_size, intermediate_size]`` int8.
        w_down_scale: ``[num_experts, hidden_size]`` float32.
    """

    w_gate_up: Tensor
    w_gate_up_scale: Tensor
    w_down: Tensor
    w_down_scale: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the four tensors take: one byte for each weight and four for each output channel, about half of
        bfloat16."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self)

    def to(self, device: torch.device | str) -> Int8Experts:
        """The same on another device."""
        return Int8Experts(*(tensor.to(device) for tensor in self))


def quantize_experts(w_gate_up: Tensor, w_down: Tensor, *, transposed: bool = False) -> Int8Experts:
    """Rounds the weights of all experts to int8, for :func:`fused_experts_int8`.

    Symmetric, one scale for each output channel of each expert: ``scale = largest magnitude / 127``, and the nearest
    multiple of it for each weight, ties to even. A channel of zeros, or one whose scale would be below the smallest
    normal float32, gets scale 0 and zeros. Biases are not quantised. No gradient.

    Args:
        w_gate_up: ``[num_experts, 2 * intermediate_size, hidden_size]`` as for :func:`fused_experts`, gate first or
            interleaved; without a gate ``[num_experts, intermediate_size, hidden_size]``. float32, bfloat16 or float16
            on the CPU, any strides.
        w_down: ``[num_experts, hidden_size, intermediate_size]``.
        transposed: the weights are ``[num_experts, hidden_size, 2 * intermediate_size]`` and
            ``[num_experts, intermediate_size, hidden_size]``. The result is not.

    Returns:
        :class:`Int8Experts`: contiguous tensors, one byte for each weight.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device, or a weight that is not finite.
        NotImplementedError: weights that are not on the CPU.
    """
    name = "quantize_experts"
    _checks.is_bool(name, "transposed", transposed)
    for label, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        _checks.is_tensor(name, label, weight, INT8_DTYPES)
        _checks.has_rank(name, label, weight, "num_experts, out_features, in_features")
    _checks.same_device(name, "w_down", w_down, "w_gate_up", w_gate_up)
    _is_on_cpu(name, "w_gate_up", w_gate_up)
    if transposed:
        w_gate_up, w_down = w_gate_up.mT, w_down.mT
    num_experts, hidden_size, intermediate_size = w_down.shape
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: w_down must have at least one expert, got num_experts 0")
    width = w_gate_up.shape[1]
    if width not in (intermediate_size, 2 * intermediate_size):
        raise ValueError(
            f"moe_ext.{name}: w_gate_up must have intermediate_size = {intermediate_size} output channels, "
            f"or twice as many with a gate, got {width}"
        )
    _checks.has_shape(
        name, "w_gate_up", w_gate_up, "num_experts, width, hidden_size", (num_experts, width, hidden_size)
    )
    tensors: list[Tensor] = []
    for label, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        values, scales = torch.ops.moe_ext.quantize_int8(weight.detach())
        bad = scales.isnan().any(dim=1).nonzero()
        if bad.numel():
            raise ValueError(f"moe_ext.{name}: {label} must be finite, but that of expert {int(bad[0])} is not")
        tensors += (values, scales)
    return Int8Experts(*tensors)


def _is_on_cpu(function: str, name: str, tensor: Tensor) -> None:
    if tensor.device.type not in ("cpu", "meta"):
        raise NotImplementedError(
            f"moe_ext.{function}: only tensors on the CPU are supported, got {name} on {tensor.device}"
        )


def fused_experts_int8(
    x: Tensor,
    experts: Int8Experts,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    activation: str = "swiglu",
    b_gate_up: Tensor | None = None,
    b_down: Tensor | None = None,
    interleaved: bool = False,
    apply_weights: str = "output",
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """:func:`fused_experts` with weights in int8, for inference on the CPU.

    Activations are quantised on the way, symmetrically with a scale for each row: ``x`` once a token, what comes out of
    the activation function once a row. Products of int8 are summed exactly in int32; scales, biases and activation are
    float32. Every CPU instruction set gives the same bits, for any number of threads, and what belongs to a token does
    not depend on the other tokens. A token whose ``x`` holds a NaN or an infinity becomes NaN.

    How exact: with normally distributed inputs and weights the norm of the error over that of the output is 0.023
    (hidden_size 512, intermediate_size 256) to 0.028 (4096, 1408) for "swiglu", 0.018 to 0.022 for "relu2"; rounding
    the weights alone accounts for 0.013 to 0.015. Outliers among the values of a row or of a channel add to it.

    Args:
        x: ``[num_tokens, hidden_size]``, float32, bfloat16 or float16, on the CPU.
        experts: what :func:`quantize_experts` returned. ``hidden_size`` and ``intermediate_size`` are at most 131072.
        topk_weights, topk_ids, activation, interleaved, apply_weights, alpha, limit: as for :func:`fused_experts`.
        b_gate_up, b_down: biases as for :func:`fused_experts`, in the dtype of ``x``; not quantised.

    Returns:
        y: ``[num_tokens, hidden_size]`` in the dtype of ``x``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, range or option.
        NotImplementedError: tensors that are not on the CPU; in backward, that there is no derivative.
    """
    name = "fused_experts_int8"
    _checks.is_choice(name, "activation", activation, GATED_ACTIVATIONS + UNGATED_ACTIVATIONS)
    _checks.is_bool(name, "interleaved", interleaved)
    _checks.is_choice(name, "apply_weights", apply_weights, APPLY_WEIGHTS)
    _checks.is_number(name, "alpha", alpha)
    _checks.is_number(name, "limit", limit, above=0.0)
    _checks.is_tensor(name, "x", x, INT8_DTYPES)
    _checks.has_rank(name, "x", x, "num_tokens, hidden_size")
    _is_on_cpu(name, "x", x)
    _check_experts(x, experts, activation, b_gate_up, b_down)
    weights = _checks.routing_weights(name, topk_weights, x)
    _checks.is_tensor(name, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank(name, "topk_ids", topk_ids, "num_tokens, top_k")
    sizes = (x.shape[0], topk_ids.shape[1])
    _checks.has_shape(name, "topk_ids", topk_ids, "num_tokens, top_k", sizes)
    _checks.has_shape(name, "topk_weights", topk_weights, "num_tokens, top_k", sizes)
    _checks.same_device(name, "topk_ids", topk_ids, "x", x)
    _checks.same_device(name, "topk_weights", topk_weights, "x", x)
    y: Tensor = _fused_experts_int8(
        x, *experts, weights, topk_ids, b_gate_up, b_down, activation, float(alpha), float(limit), interleaved,
        apply_weights,
    )  # fmt: skip
    return y


# Of the sums in int32, see csrc/include/moe/fused_experts_int8.h.
LONGEST_SUM = 1 << 17


def _check_experts(
    x: Tensor, experts: Int8Experts, activation: str, b_gate_up: Tensor | None, b_down: Tensor | None
) -> None:
    name = "fused_experts_int8"
    if not isinstance(experts, Int8Experts):
        raise TypeError(f"moe_ext.{name}: experts must be a moe_ext.Int8Experts, got {type(experts).__name__}")
    for label, values in (("experts.w_gate_up", experts.w_gate_up), ("experts.w_down", experts.w_down)):
        _checks.is_tensor(name, label, values, (torch.int8,))
    _checks.has_rank(name, "experts.w_down", experts.w_down, "num_experts, hidden_size, intermediate_size")
    num_experts, _, inter = experts.w_down.shape
    hidden = x.shape[1]
    if num_experts < 1:
        raise ValueError(f"moe_ext.{name}: experts.w_down must have at least one expert, got num_experts 0")
    for label, size in (("hidden_size", hidden), ("intermediate_size", inter)):
        if size > LONGEST_SUM:
            raise ValueError(f"moe_ext.{name}: {label} must be at most {LONGEST_SUM}, got {size}")
    gated = activation in GATED_ACTIVATIONS
    width_axis, width = ("2 * intermediate_size", 2 * inter) if gated else ("intermediate_size", inter)
    shapes: tuple[tuple[str, Tensor, str, tuple[Any, ...]], ...] = (
        ("w_gate_up", experts.w_gate_up, f"num_experts, {width_axis}, hidden_size", (num_experts, width, hidden)),
        ("w_gate_up_scale", experts.w_gate_up_scale, f"num_experts, {width_axis}", (num_experts, width)),
        ("w_down", experts.w_down, "num_experts, hidden_size, intermediate_size", (num_experts, hidden, inter)),
        ("w_down_scale", experts.w_down_scale, "num_experts, hidden_size", (num_experts, hidden)),
    )
    for label, tensor, axes, sizes in shapes:
        if label.endswith("scale"):
            _checks.is_tensor(name, f"experts.{label}", tensor, (torch.float32,))
        elif sizes[-1] > 1 and tensor.ndim == 3 and tensor.stride(-1) != 1:
            raise ValueError(f"moe_ext.{name}: experts.{label} must be contiguous along its last dimension")
        _checks.has_shape(name, f"experts.{label}", tensor, axes, sizes)
        _checks.same_device(name, f"experts.{label}", tensor, "x", x)
    for label, bias, axes, size in (
        ("b_gate_up", b_gate_up, f"num_experts, {width_axis}", width),
        ("b_down", b_down, "num_experts, hidden_size", hidden),
    ):
        if bias is not None:
            _checks.is_tensor(name, label, bias, INT8_DTYPES)
            _checks.has_shape(name, label, bias, axes, (num_experts, size))
            _checks.same_dtype(name, label, bias, "x", x)
            _checks.same_device(name, label, bias, "x", x)


@fake("quantize_int8")
def _quantize_int8_fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape, dtype=torch.int8),
        weight.new_empty(weight.shape[:2], dtype=torch.float32),
    )


@fake("fused_experts_int8")
def _fused_experts_int8_fake(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_derivative(name: str) -> Callable[..., NoReturn]:
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise NotImplementedError(
            f"{NAMESPACE}::{name} has no derivative: it is for inference. Train with fused_experts"
        )

    return backward


differentiable("quantize_int8", setup_context=_setup_context, backward=_no_derivative("quantize_int8"))
_fused_experts_int8 = differentiable(
    "fused_experts_int8",
    setup_context=_setup_context,
    backward=_no_derivative("fused_experts_int8"),
    autocast=(0, 7, 8),
)
