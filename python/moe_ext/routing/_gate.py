"""The weight of a gate: how it starts, and what it computes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._precision import Float32Module


def init_weight(weight: Tensor, fan_in: int, std: float | None, *, truncate: bool = False) -> None:
    """Fill a weight in place, whatever its layout: N(0, std), or for None U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    The second is what `nn.Linear` does, so a layer starts at the scale of the dense one it replaces. torch's own
    `kaiming_uniform_` can't be used: it would take a stack of experts [E, N, C] for a convolution and multiply fan_in
    by one of its axes. `truncate` cuts the normal distribution off at two standard deviations.
    """
    if std is None:
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(weight, -bound, bound)
    elif truncate and std > 0:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)


class LinearGate(Float32Module):
    """`weight` [E, H] and `bias` [E] or None, float32, and the product with them. Arguments as in `LinearLogits`."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        bias: bool,
        init_std: float | None,
        truncate: bool = False,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.init_std = init_std
        self.truncate = truncate
        float32: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, **float32))
        self.bias = nn.Parameter(torch.empty(num_experts, **float32)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weight; set the bias to zero."""
        init_weight(self.weight, self.hidden_size, self.init_std, truncate=self.truncate)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def linear(self, x: Tensor) -> Tensor:
        """[T, H] of any float dtype -> [T, E] float32 (float64 for float64 x)."""
        with no_autocast(x.device.type):
            x = wide(x)
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
