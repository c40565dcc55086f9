"""Which fused activation, if any, computes what a Transformers experts module does between its two products."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import activations as hf_activations


class Epilogue(NamedTuple):
    """Arguments of `moe_ext.fused_experts` that describe an activation."""

    activation: str
    interleaved: bool = False
    alpha: float = 1.702
    limit: float = 7.0


def recognise(experts: nn.Module, has_gate: bool) -> Epilogue | None:
    """The fused equivalent of `act_fn` or `_apply_gate`; None if there is none or it can't be told for sure."""
    if not has_gate:
        pointwise = _pointwise(getattr(experts, "act_fn", None))
        return None if pointwise is None else Epilogue(pointwise)
    if "_apply_gate" in experts.__dict__:
        return None
    apply_gate = getattr(type(experts), "_apply_gate", None)
    if apply_gate is None:
        # Transformers gives every class one. Without it there is only the layout flag to go by.
        formula: _Formula | None = (not getattr(experts, "is_concatenated", True), None, None)
    else:
        formula = _formula_of(apply_gate)
    if formula is None:
        return None
    interleaved, alpha_name, limit_name = formula
    if alpha_name is None or limit_name is None:
        gated = _GATED.get(_pointwise(getattr(experts, "act_fn", None)))
        return None if gated is None else Epilogue(gated, interleaved)
    alpha, limit = getattr(experts, alpha_name, None), getattr(experts, limit_name, None)
    if not isinstance(alpha, int | float) or not isinstance(limit, int | float) or limit <= 0:
        return None
    return Epilogue("clamped_swiglu", interleaved, float(alpha), float(limit))


# The activation function -------------------------------------------------------------------------------------------

_GATED: dict[str | None, str] = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}
_FUNCTIONS: dict[Any, str] = {F.silu: "silu", F.gelu: "gelu", F.relu: "relu", torch.relu: "relu"}
_MODULES: dict[type, str] = {nn.SiLU: "silu", nn.ReLU: "relu"}
# By name, since not every version of Transformers has all of them. Exact types: a subclass may compute anything.
_MODULES |= {
    getattr(hf_activations, class_name): activation
    for class_name, activation in {
        "SiLUActivation": "silu",
        "GELUActivation": "gelu",
        "GELUTanh": "gelu_tanh",
        "PytorchGELUTanh": "gelu_tanh",
        "NewGELUActivation": "gelu_tanh",
        "ReLUSquaredActivation": "relu2",
    }.items()
    if hasattr(hf_activations, class_name)
}


def _pointwise(act_fn: Any) -> str | None:
    if not isinstance(act_fn, nn.Module):
        return _FUNCTIONS.get(act_fn)
    # A replaced forward or a hook is a wish to see or change the values, which fused they never are.
    if "forward" in act_fn.__dict__ or act_fn._forward_hooks or act_fn._forward_pre_hooks or act_fn._backward_hooks:
        return None
    if type(act_fn) is nn.GELU:
        return "gelu_tanh" if act_fn.approximate == "tanh" else "gelu"
    return _MODULES.get(type(act_fn))


# The gating function -----------------------------------------------------------------------------------------------

# interleaved, and for the clamped SwiGLU the attributes it reads alpha and limit from (None for act_fn(gate) * up).
_Formula = tuple[bool, str | None, str | None]

# Every attribute has its own value, so that the result says which one was read.
_ALPHAS = {"alpha": 0.7, "swiglu_alpha": 1.3}
_LIMITS = {"limit": 2.0, "swiglu_limit": 3.5}


@torch.compiler.assume_constant_result
def _formula_of(apply_gate: Callable[[Any, Tensor], Tensor]) -> _Formula | None:
    return _probe(apply_gate)


@functools.cache
def _probe(apply_gate: Callable[[Any, Tensor], Tensor]) -> _Formula | None:
    """Tell by its values what a gating function computes.

    Its name says nothing, and comparing it with known functions would miss those that are equal and trust those that
    a new version of Transformers changed. So it runs once on a stand-in for the experts module that has nothing but
    the attributes below. A function that reads anything else fails and is unknown, and so is one whose result isn't
    that of exactly one formula.
    """
    # Not under a tracer's modes: the values have to be real.
    with torch.no_grad(), _disable_current_modes():
        generator = torch.Generator("cpu").manual_seed(0)
        # From far inside the clamps to far outside.
        spread = torch.logspace(-1, 1.5, 24, dtype=torch.float64, device="cpu")
        gate_up = torch.randn(16, 24, generator=generator, dtype=torch.float64, device="cpu") * spread
        # Sine is an activation of nobody: what comes out like it has gone through act_fn.
        stand_in = SimpleNamespace(act_fn=torch.sin, **_ALPHAS, **_LIMITS)
        try:
            result = apply_gate(stand_in, gate_up.clone())
            matches = [formula for formula, y in _formulas(gate_up) if torch.allclose(result.double(), y, rtol=1e-5)]
        except Exception:  # Whatever an unknown function stumbles over, it is unknown.
            return None
    return matches[0] if len(matches) == 1 else None


def _formulas(gate_up: Tensor) -> list[tuple[_Formula, Tensor]]:
    formulas: list[tuple[_Formula, Tensor]] = []
    for interleaved in (False, True):
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if interleaved else gate_up.chunk(2, dim=-1)
        formulas.append(((interleaved, None, None), torch.sin(gate) * up))
        for alpha_name, alpha in _ALPHAS.items():
            for limit_name, limit in _LIMITS.items():
                clamped_gate, clamped_up = gate.clamp(max=limit), up.clamp(-limit, limit)
                y = (clamped_up + 1) * clamped_gate * torch.sigmoid(alpha * clamped_gate)
                formulas.append(((interleaved, alpha_name, limit_name), y))
    return formulas
