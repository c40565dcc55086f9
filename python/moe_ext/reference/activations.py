"""What stands between the two GEMMs of an expert.

Gated ones take a gate g and an up projection u: SwiGLU, GEGLU and ReGLU of Shazeer 2020 (arXiv:2002.05202), and the
clamped SwiGLU of the gpt-oss models. Ungated ones take one input; relu2 is So et al. 2021 (arXiv:2109.08668).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.reference.precision import compute_dtype


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _clamped_swiglu(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    gate = gate.clamp(max=limit)
    up = up.clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


_GATED: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "swiglu": lambda gate, up, alpha, limit: F.silu(gate) * up,
    "geglu": lambda gate, up, alpha, limit: F.gelu(gate) * up,
    "geglu_tanh": lambda gate, up, alpha, limit: _gelu_tanh(gate) * up,
    "reglu": lambda gate, up, alpha, limit: F.relu(gate) * up,
    "clamped_swiglu": _clamped_swiglu,
}

_UNGATED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}

GATED_ACTIVATIONS = tuple(_GATED)
UNGATED_ACTIVATIONS = tuple(_UNGATED)
ACTIVATIONS = GATED_ACTIVATIONS + UNGATED_ACTIVATIONS


def activate(
    preact: Tensor, activation: str, *, alpha: float = 1.702, limit: float = 7.0, interleaved: bool = False
) -> Tensor:
    """Apply an activation to the output of the first GEMM, in float32 (float64 for float64), rounded once.

    Args:
        preact: ``[R, 2I]`` for gated activations, ``[R, I]`` for ungated ones.
        activation: one of ``ACTIVATIONS``.
        alpha, limit: used by ``clamped_swiglu`` alone.
        interleaved: gate in the even columns and up in the odd ones, instead of gate in the first half and up in the
            second. Means nothing to ungated activations.

    Returns:
        ``[R, I]`` in the dtype of preact.

    Raises:
        ValueError: an unknown activation.
    """
    wide = preact.to(compute_dtype(preact.dtype))
    if activation in _UNGATED:
        return _UNGATED[activation](wide).to(preact.dtype)
    if activation not in _GATED:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    gate, up = (wide[:, 0::2], wide[:, 1::2]) if interleaved else wide.chunk(2, dim=1)
    return _GATED[activation](gate, up, alpha, limit).to(preact.dtype)
