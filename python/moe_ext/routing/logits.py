"""From hidden states to router logits: the first of the three parts of a `Router`."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.routing._precision import Float32Module, no_autocast, wide


class LinearLogits(Float32Module):
    """`router_logits = x W^T (+ b)` in float32: the gate of nearly every MoE model.

    Args:
        hidden_size, num_experts: H, E.
        bias: add a trained bias (GPT-OSS).
        init_std: standard deviation of the weight's normal initialisation; None for that of `nn.Linear`,
            U(-1/sqrt(H), 1/sqrt(H)); 0 for a weight of zeros (Shazeer et al. 2017, arXiv:1701.06538).
        device: where to create the parameters. There is no dtype: they are float32.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        bias: bool = False,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.init_std = init_std
        float32: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, **float32))
        self.bias = nn.Parameter(torch.empty(num_experts, **float32)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weight; set the bias to zero."""
        if self.init_std is None:
            bound = 1 / math.sqrt(self.hidden_size)
            nn.init.uniform_(self.weight, -bound, bound)
        else:
            nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] of any float dtype -> [T, E] float32 (float64 for float64 x)."""
        with no_autocast(x.device.type):
            x = wide(x)
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, bias={self.bias is not None}"
