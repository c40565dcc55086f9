"""moe_ext inside Hugging Face Transformers, as an implementation of its experts modules.

    import moe_ext.integrations.transformers
    model.set_experts_implementation("moe_ext")

Importing registers the name. Every model whose experts Transformers dispatches can then use it, in any of its weight
layouts, with gradients, under `torch.compile` and in `generate`. The choice isn't saved with a model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
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
    # Not every version of Transformers sets every flag.
    has_gate = getattr(self, "has_gate", True)
    has_norm = getattr(self, "has_post_expert_norm", False)
    weights = _weights_of(self, "gate_up_proj" if has_gate else "up_proj")
    x = hidden_states.to(weights.w_in.dtype)
    epilogue = None if has_norm else recognise(self, has_gate)
    if epilogue is None:
        between = self._apply_gate if has_gate else self.act_fn
        after = self.post_expert_norm if has_norm else None
        y = _in_steps(x, weights, top_k_index, top_k_weights, between, after)
    else:
        y = _fused(x, weights, top_k_index, top_k_weights, epilogue)
    return y.to(hidden_states.dtype)


class _Weights(NamedTuple):
    w_in: Tensor
    w_down: Tensor
    b_in: Tensor | None
    b_down: Tensor | None
    transposed: bool


def _weights_of(experts: Any, in_proj: str) -> _Weights:
    w_in: Tensor = getattr(experts, in_proj)
    has_bias = getattr(experts, "has_bias", False)
    # They nearly always share a dtype already; the ops insist on it.
    return _Weights(
        w_in=w_in,
        w_down=experts.down_proj.to(w_in.dtype),
        b_in=getattr(experts, f"{in_proj}_bias").to(w_in.dtype) if has_bias else None,
        b_down=experts.down_proj_bias.to(w_in.dtype) if has_bias else None,
        transposed=getattr(experts, "is_transposed", False),
    )


def _fused(x: Tensor, weights: _Weights, topk_ids: Tensor, topk_weights: Tensor, epilogue: Epilogue) -> Tensor:
    return fused_experts(
        x,
        weights.w_in,
        weights.w_down,
        topk_weights,
        topk_ids,
        activation=epilogue.activation,
        b_gate_up=weights.b_in,
        b_down=weights.b_down,
        interleaved=epilogue.interleaved,
        transposed=weights.transposed,
        alpha=epilogue.alpha,
        limit=epilogue.limit,
    )


def _in_steps(
    x: Tensor,
    weights: _Weights,
    topk_ids: Tensor,
    topk_weights: Tensor,
    between: Callable[[Tensor], Tensor],
    after: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    w_in, w_down, b_in, b_down, transposed = weights
    order = permute(topk_ids, w_in.shape[0])
    offsets = order.expert_offsets
    # Rows of no expert would gather token -1, but are never read.
    tokens = torch.div(order.row_to_slot, topk_ids.shape[1], rounding_mode="floor")
    rows = between(grouped_gemm(x, w_in, offsets, bias=b_in, transposed=transposed, gather=tokens))
    # The module's own arithmetic may have widened the rows.
    rows = grouped_gemm(rows.to(w_down.dtype), w_down, offsets, bias=b_down, transposed=transposed)
    return combine(rows if after is None else after(rows), topk_weights, order)


register()
