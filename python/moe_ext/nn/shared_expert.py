"""The expert that every token goes to: an ordinary feed-forward network, with a gate if wanted."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.nn.activations import activate, is_gated
from moe_ext.routing._gate import init_weight


class SharedExpert(nn.Module):
    """`y = W_down act(W_gate_up x)`, times `sigmoid(w_gate . x)` per token if `gate` is set.

    N shared experts of width I are the same function as one of width N I (DeepSeekMoE, arXiv:2401.06066), so
    this one module stands for any number of them. The gate is that of Qwen1.5-MoE and Qwen2-MoE: one linear output
    without bias.

    Parameters, in the layout of one expert of `Experts`: `w_gate_up` [G, H] (gate rows first), `w_down` [H, I],
    `b_gate_up` [G] and `b_down` [H] or None, `w_gate` [1, H] or None.

    Args:
        hidden_size, intermediate_size: H, I (the width of all shared experts together).
        activation, bias, alpha, limit, init_std, dtype, device: as in `Experts`.
        gate: multiply the output by a learned sigmoid gate.
    """

    b_gate_up: nn.Parameter | None
    b_down: nn.Parameter | None
    w_gate: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str = "swiglu",
        bias: bool = False,
        gate: bool = False,
        alpha: float = 1.702,
        limit: float = 7.0,
        init_std: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.activation = activation
        self.alpha = alpha
        self.limit = limit
        self.init_std = init_std
        width = (2 if is_gated(activation) else 1) * intermediate_size
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.w_gate_up = nn.Parameter(torch.empty(width, hidden_size, **factory))
        self.w_down = nn.Parameter(torch.empty(hidden_size, intermediate_size, **factory))
        if bias:
            self.b_gate_up = nn.Parameter(torch.empty(width, **factory))
            self.b_down = nn.Parameter(torch.empty(hidden_size, **factory))
        else:
            self.register_parameter("b_gate_up", None)
            self.register_parameter("b_down", None)
        self.register_parameter("w_gate", nn.Parameter(torch.empty(1, hidden_size, **factory)) if gate else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weights; set the biases to zero."""
        init_weight(self.w_gate_up, self.hidden_size, self.init_std)
        init_weight(self.w_down, self.intermediate_size, self.init_std)
        if self.w_gate is not None:
            init_weight(self.w_gate, self.hidden_size, self.init_std)
        for bias in (self.b_gate_up, self.b_down):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        preact = F.linear(x, self.w_gate_up, self.b_gate_up)
        y = F.linear(activate(preact, self.activation, self.alpha, self.limit), self.w_down, self.b_down)
        if self.w_gate is not None:
            y = y * torch.sigmoid(F.linear(x, self.w_gate))
        return y

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"activation={self.activation!r}, bias={self.b_down is not None}, gate={self.w_gate is not None}"
        )
