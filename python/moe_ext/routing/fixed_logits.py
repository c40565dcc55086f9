"""Logits that don't look at the tokens: for routers whose choice is not learned."""

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops._precision import wide
from moe_ext.routing._random import draw_seed, random


class ConstantLogits(nn.Module):
    """The same logit for every token and expert, without parameters.

    It stands in `Router` where the selection does not read the logits: `Router(ConstantLogits(E), HashSelection(...))`.

    Args:
        num_experts: E.
        value: the logit.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(self, num_experts: int, *, value: float = 0.0) -> None:
        super().__init__()
        _checks.is_int("ConstantLogits", "num_experts", num_experts, low=1)
        self.num_experts = num_experts
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """[T, ...] -> [T, E] float32 (float64 for float64 x)."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.new_full((x.shape[0], self.num_experts), self.value, dtype=dtype)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, value={self.value}"


class RandomLogits(nn.Module):
    """`router_logits = mean + std n` with n ~ N(0, 1), new in every call, training or not.

    `Router(RandomLogits(E), TopK(E, K))` is the random baseline of Mod-Squad (arXiv:2212.08066, published code):
    balanced, with weights near 1 / E.

    Args:
        num_experts: E.
        mean, std: of the normal distribution.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(self, num_experts: int, *, mean: float = 1.0, std: float = 1e-3) -> None:
        super().__init__()
        _checks.is_int("RandomLogits", "num_experts", num_experts, low=1)
        _checks.is_number("RandomLogits", "std", std, low=0.0)
        self.num_experts = num_experts
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """[T, ...] -> [T, E] float32 (float64 for float64 x)."""
        noise = random(draw_seed(x.device), (x.shape[0], self.num_experts), "normal")
        noise = noise.to(wide(x[:0]).dtype)
        return self.mean + self.std * noise

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, mean={self.mean}, std={self.std}"
