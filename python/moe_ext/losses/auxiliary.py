"""Carry an auxiliary loss through the layer's own output, so that no caller has to collect it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_ext.ops import _checks


class AuxiliaryLossScale:
    """One factor for the auxiliary losses of many layers, set once per step (Megatron-LM's `set_loss_scale`).

    Give the object as `scale` to `add_auxiliary_loss`. Set it to what the main loss is multiplied by: the scale of a
    gradient scaler, 1 / accumulation steps. What counts is the value at the time of the backward pass; under
    `torch.compile`, set it before the forward pass. Its value is a tensor, so that setting it neither waits for a
    device nor recompiles anything.

    Args:
        value: to begin with.
        device: of the tensor. One on the CPU serves any device.

    Raises:
        TypeError, ValueError: a value that is not a finite number.
    """

    def __init__(self, value: float = 1.0, *, device: torch.device | str | None = None) -> None:
        _checks.is_number("losses.AuxiliaryLossScale", "value", value)
        self.value = torch.full((), float(value), dtype=torch.float32, device=device)

    def set(self, value: float | Tensor) -> None:
        """Give it another value.

        Args:
            value: a number, or a tensor of one element. A tensor on a GPU is waited for if the scale is on the CPU.

        Raises:
            TypeError: neither. ValueError: a number that is not finite, or a tensor of several elements.
        """
        if isinstance(value, Tensor):
            _check_one_element("losses.AuxiliaryLossScale.set", "value", value)
            self.value.copy_(value.detach().reshape(()))
        else:
            _checks.is_number("losses.AuxiliaryLossScale.set", "value", value)
            self.value.fill_(value)

    def __repr__(self) -> str:
        return f"AuxiliaryLossScale({self.value.item()})"


class _AddAuxiliaryLoss(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, loss: Tensor, scale: float | Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float | Tensor], output: Tensor) -> None:
        # Not saved for backward: setting the scale between forward and backward is what it is for.
        _, loss, ctx.scale = inputs
        ctx.loss_dtype, ctx.loss_device, ctx.loss_shape = loss.dtype, loss.device, loss.shape

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        like: dict[str, Any] = {"dtype": ctx.loss_dtype, "device": ctx.loss_device}
        if isinstance(ctx.scale, Tensor):
            # A CPU scalar multiplies a tensor on any device without a copy that would wait for it.
            return grad_output, torch.ones(ctx.loss_shape, **like) * ctx.scale.to(ctx.loss_dtype), None
        return grad_output, torch.full(ctx.loss_shape, ctx.scale, **like), None


def _check_one_element(function: str, name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"moe_ext.{function}: {name} must have one element, got shape {tuple(value.shape)}")


def add_auxiliary_loss(x: Tensor, loss: Tensor, scale: float | Tensor | AuxiliaryLossScale = 1.0) -> Tensor:
    """Return x unchanged; when x is differentiated, `loss` receives the gradient `scale`.

    The effect is that of minimising `main_loss + scale * loss` without ever forming that sum, and independent of
    what happens to x downstream, even if it is multiplied by zero. DeepSeekMoE's modelling code calls this trick
    `AddAuxiliaryLoss`, Megatron-LM `MoEAuxLossAutoScaler`. Recomputing activations (checkpointing) adds it once.

    Caveats: when the main loss is multiplied before `backward()`, by a gradient scaler or by 1 / accumulation steps,
    give the same factor as `scale`. No gradient arrives if the result takes no part in the main loss at all. The
    result shares the memory of x and must not be modified in place (PyTorch raises), so the routing weights are a
    better carrier than the output of a layer.

    Args:
        x: any tensor. loss: one element, already multiplied by its coefficient.
        scale: the gradient `loss` gets: a number, a tensor of one element, or an `AuxiliaryLossScale`. The latter two
            are looked at in the backward pass.

    Raises:
        TypeError: x or `loss` is no tensor, or `scale` none of these.
        ValueError: `loss` or `scale` has more than one element.
    """
    function = "losses.add_auxiliary_loss"
    for name, value in (("x", x), ("loss", loss)):
        if not isinstance(value, Tensor):
            raise TypeError(f"moe_ext.{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    _check_one_element(function, "loss", loss)
    if isinstance(scale, AuxiliaryLossScale):
        scale = scale.value
    if isinstance(scale, Tensor):
        _check_one_element(function, "scale", scale)
        scale = scale.detach().reshape(())
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(
            f"moe_ext.{function}: scale must be a number, a tensor or an AuxiliaryLossScale, got {type(scale).__name__}"
        )
    return _AddAuxiliaryLoss.apply(x, loss, scale)
