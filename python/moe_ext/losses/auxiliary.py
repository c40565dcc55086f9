"""Carry an auxiliary loss through the layer's own output, so that no caller has to collect it."""

from typing import Any

import torch
from torch import Tensor


class _AddAuxiliaryLoss(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, loss: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        _, loss, ctx.scale = inputs
        ctx.loss_dtype, ctx.loss_device, ctx.loss_shape = loss.dtype, loss.device, loss.shape

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_loss = torch.full(ctx.loss_shape, ctx.scale, dtype=ctx.loss_dtype, device=ctx.loss_device)
        return grad_output, grad_loss, None


def add_auxiliary_loss(x: Tensor, loss: Tensor, scale: float = 1.0) -> Tensor:
    """Return x unchanged; when x is differentiated, `loss` receives the gradient `scale`.

    The effect is that of minimising `main_loss + scale * loss` without ever forming that sum, and independent of
    what happens to x downstream, even if it is multiplied by zero. DeepSeekMoE's modelling code calls this trick
    `AddAuxiliaryLoss`, Megatron-LM `MoEAuxLossAutoScaler`.

    Caveats: when the main loss is multiplied before `backward()`, by a gradient scaler or by 1 / accumulation steps,
    give the same factor as `scale`. No gradient arrives if the result takes no part in the main loss at all. The
    result shares the memory of x and must not be modified in place (PyTorch raises), so the routing weights are a
    better carrier than the output of a layer.

    Args:
        x: any tensor. loss: one element, already multiplied by its coefficient. scale: the gradient `loss` gets.

    Raises:
        ValueError: `loss` has more than one element.
    """
    if loss.numel() != 1:
        raise ValueError(f"add_auxiliary_loss: loss must have one element, got shape {tuple(loss.shape)}")
    return _AddAuxiliaryLoss.apply(x, loss, scale)
