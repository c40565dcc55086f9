"""moe_ext inside Hugging Face Transformers, as an implementation of its experts modules.

    import moe_ext.integrations.transformers
    model.set_experts_implementation("moe_ext")

Importing registers the name. Every model whose experts Transformers dispatches can then use it, in any of its weight
layouts, with gradients, under `torch.compile` and in `generate`. The choice isn't saved with a model.
"""

from typing import Any

import torch
from torch import Tensor, nn

try:
    from transformers.integrations.moe import ExpertsInterface
except ImportError as error:
    raise ImportError(
        "moe_ext.integrations.transformers needs the package transformers in a version that has "
        "transformers.integrations.moe.ExpertsInterface (5.0 or newer): pip install -U transformers"
    ) from error

from moe_ext.integrations._epilogue import Epilogue, recognise
from moe_ext.ops import combine, fused_experts, grouped_gemm, permute

NAME = "moe_ext"

__all__ = ["NAME", "experts_forward", "register"]


def register(name: str = NAME) -> None:
    """Make `experts_forward` available as `experts_implementation=name`. Importing this module does it once."""
    ExpertsInterface.register(name, experts_forward)


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward of a Transformers experts module; see `transformers.integrations.moe.ExpertsInterface`.

    The weights are used where they are, in the layout that the module's flags state (`is_transposed`, `has_bias`,
    `has_gate`). Known activations run fused with the products; any other `act_fn`, `_apply_gate` or
    `post_expert_norm` runs in Python between two grouped products, so every module works.

    Args:
        self: the experts module.
        hidden_states: [T, H], any float dtype; converted to that of the weights.
        top_k_index: [T, K]; ids at and above the number of local experts belong to another rank and add nothing,
            nor do they get a gradient.
        top_k_weights: [T, K], any float dtype.

    Returns:
        [T, H] in the dtype of `hidden_states`.
    """
    has_gate = getattr(self, "has_gate", True)
    prefix = "gate_up_proj" if has_gate else "up_proj"
    has_bias = getattr(self, "has_bias", False)
    w_in = getattr(self, prefix)
    w_down = self.down_proj.to(w_in.dtype)
    b_in = getattr(self, f"{prefix}_bias").to(w_in.dtype) if has_bias else None
    b_down = self.down_proj_bias.to(w_in.dtype) if has_bias else None
    has_norm = getattr(self, "has_post_expert_norm", False)

    x = hidden_states.to(w_in.dtype)
    epilogue = None if has_norm else recognise(self, has_gate)
    if epilogue is not None:
        y = _fused(self, epilogue, x, w_in, w_down, b_in, b_down, top_k_index, top_k_weights)
    else:
        y = _in_steps(self, has_gate, has_norm, x, w_in, w_down, b_in, b_down, top_k_index, top_k_weights)
    return y.to(hidden_states.dtype)


def _fused(
    experts: Any,
    epilogue: Epilogue,
    x: Tensor,
    w_in: Tensor,
    w_down: Tensor,
    b_in: Tensor | None,
    b_down: Tensor | None,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    return fused_experts(
        x,
        w_in,
        w_down,
        top_k_weights,
        top_k_index,
        activation=epilogue.activation,
        b_gate_up=b_in,
        b_down=b_down,
        interleaved=epilogue.interleaved,
        transposed=getattr(experts, "is_transposed", False),
        alpha=epilogue.alpha,
        limit=epilogue.limit,
    )


def _in_steps(
    experts: Any,
    has_gate: bool,
    has_norm: bool,
    x: Tensor,
    w_in: Tensor,
    w_down: Tensor,
    b_in: Tensor | None,
    b_down: Tensor | None,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    transposed = getattr(experts, "is_transposed", False)
    order = permute(top_k_index, w_in.shape[0])
    offsets = order.expert_offsets
    # Rows of no expert gather token -1, which is never read.
    tokens = torch.div(order.row_to_slot, top_k_index.shape[1], rounding_mode="floor")
    rows = grouped_gemm(x, w_in, offsets, bias=b_in, transposed=transposed, gather=tokens)
    rows = experts._apply_gate(rows) if has_gate else experts.act_fn(rows)
    # Autocast or the module's own arithmetic may have widened the rows.
    rows = grouped_gemm(rows.to(w_down.dtype), w_down, offsets, bias=b_down, transposed=transposed)
    if has_norm:
        rows = experts.post_expert_norm(rows)
    return combine(rows, top_k_weights, order)


register()
