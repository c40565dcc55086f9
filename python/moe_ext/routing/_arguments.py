"""What the stages between router and experts check and compute in the same way."""

from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from moe_ext.ops import _checks


class Routed(Protocol):
    """What has weights and ids: `moe_ext.Routing` or `moe_ext.routing.RouterOutput`."""

    @property
    def topk_weights(self) -> Tensor: ...
    @property
    def topk_ids(self) -> Tensor: ...


def check_routing(function: str, routing: Routed) -> tuple[Tensor, Tensor]:
    """(topk_weights, topk_ids), both [T, K] on one device."""
    if not (hasattr(routing, "topk_weights") and hasattr(routing, "topk_ids")):
        raise TypeError(f"moe_ext.{function}: routing must be a Routing, got {type(routing).__name__}")
    topk_weights, topk_ids = routing.topk_weights, routing.topk_ids
    _checks.is_tensor(function, "topk_weights", topk_weights, _checks.DATA_DTYPES)
    _checks.is_tensor(function, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank(function, "topk_ids", topk_ids, "num_tokens, top_k")
    _checks.has_shape(function, "topk_weights", topk_weights, "num_tokens, top_k", topk_ids.shape)
    _checks.same_device(function, "topk_weights", topk_weights, "topk_ids", topk_ids)
    return topk_weights, topk_ids


@torch.compiler.assume_constant_result
def exact_ratio(value: float) -> tuple[int, int]:
    """`value` as the fraction that was meant: 100 * 0.07 is to be 7, not a little more, and 3 * (4 / 3) to be 4.

    Denominators are at most 10^6, so that int64 holds products with numbers of slots.
    """
    return Fraction(str(value)).limit_denominator(10**6).as_integer_ratio()


def group_of_tokens(num_tokens: int, group_size: int, device: torch.device) -> Tensor:
    """[T] int64: the group of each token."""
    return torch.arange(num_tokens, device=device).div(group_size, rounding_mode="floor")


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def normalized(weights: Tensor, eps: float) -> Tensor:
    """Weights of a token divided by their sum, which counts as at least `eps`."""
    return weights / weights.sum(1, keepdim=True).clamp(min=eps)
