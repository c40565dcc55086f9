"""Routed experts with weights in int8, for inference: one call of `moe_ext.fused_experts_int8`."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import Int8Experts, fused_experts_int8


class QuantizedExperts(nn.Module):
    """What `Experts.quantize` returns. On the CPU, without gradients; accuracy: see `moe_ext.fused_experts_int8`.

    Buffers: `w_gate_up` [E, G, H] and `w_down` [E, H, I] in int8 (gate and up as in the `Experts` that they were made
    of), their scales `w_gate_up_scale` [E, G] and `w_down_scale` [E, H], which stay float32 whatever the module is cast
    to, and the biases `b_gate_up` [E, G] and `b_down` [E, H] or None.

    Args:
        experts: what `moe_ext.quantize_experts` returned.
        activation, b_gate_up, b_down, interleaved, apply_weights, alpha, limit: as in `moe_ext.fused_experts_int8`.
            Biases are copied.
    """

    b_gate_up: Tensor | None
    b_down: Tensor | None

    def __init__(
        self,
        experts: Int8Experts,
        *,
        activation: str = "swiglu",
        b_gate_up: Tensor | None = None,
        b_down: Tensor | None = None,
        interleaved: bool = False,
        apply_weights: Literal["output", "input"] = "output",
        alpha: float = 1.702,
        limit: float = 7.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.interleaved = interleaved
        self.apply_weights = apply_weights
        self.alpha = alpha
        self.limit = limit
        for name, tensor in experts._asdict().items():
            self.register_buffer(name, tensor)
        for name, bias in (("b_gate_up", b_gate_up), ("b_down", b_down)):
            self.register_buffer(name, None if bias is None else bias.detach().clone())

    @property
    def experts(self) -> Int8Experts:
        """The weights as `moe_ext.fused_experts_int8` takes them."""
        return Int8Experts(*(self.get_buffer(name) for name in Int8Experts._fields))

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, max_rows: int | None = None) -> Tensor:
        """x [..., H] of T tokens, topk_weights [T, K], topk_ids [T, K] (sentinels contribute nothing) -> [..., H].

        `max_rows` is accepted, so that these can take the place of `Experts`, and without effect.
        """
        y = fused_experts_int8(
            x.reshape(-1, x.shape[-1]),
            self.experts,
            topk_weights,
            topk_ids,
            activation=self.activation,
            b_gate_up=self.b_gate_up,
            b_down=self.b_down,
            interleaved=self.interleaved,
            apply_weights=self.apply_weights,
            alpha=self.alpha,
            limit=self.limit,
        )
        return y.view(x.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedExperts":
        """Casts of the module leave the scales in float32."""
        scales = {name: self.get_buffer(name) for name in ("w_gate_up_scale", "w_down_scale")}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            moved = self.get_buffer(name)
            if moved.dtype != torch.float32:
                setattr(self, name, scale.to(moved.device))
        return self

    def extra_repr(self) -> str:
        num_experts, hidden_size, intermediate_size = self.get_buffer("w_down").shape
        return (
            f"hidden_size={hidden_size}, intermediate_size={intermediate_size}, num_experts={num_experts}, "
            f"activation={self.activation!r}, bias={self.b_down is not None}, interleaved={self.interleaved}, "
            f"apply_weights={self.apply_weights!r}"
        )
