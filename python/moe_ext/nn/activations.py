"""The activations by name, for the dense feed-forward of a shared expert. Experts have theirs inside the kernels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
_OF_GATE = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}

GATED = (*_OF_GATE, "clamped_swiglu")
UNGATED = tuple(_POINTWISE)


def is_gated(activation: str) -> bool:
    """Whether the activation takes a gate and an up half. Raises ValueError for a name that does not exist."""
    if activation not in GATED and activation not in UNGATED:
        raise ValueError(f"activation must be one of {', '.join((*GATED, *UNGATED))}, got {activation!r}")
    return activation in GATED


def activate(preact: Tensor, activation: str, alpha: float, limit: float) -> Tensor:
    """[..., 2I] (gate first; [..., I] for ungated activations) -> [..., I], in the dtype of preact."""
    if not is_gated(activation):
        return _POINTWISE[activation](preact)
    gate, up = preact.chunk(2, dim=-1)
    if activation != "clamped_swiglu":
        return _POINTWISE[_OF_GATE[activation]](gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)
