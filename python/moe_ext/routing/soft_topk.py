"""A differentiable top-k: every expert gets a share between 0 and 1, and the shares sum to k."""

import math
from typing import Any

import torch
from torch import Tensor

from moe_ext.ops import _checks, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module


def soft_topk(logits: Tensor, k: float, *, temperature: float | Tensor = 1.0) -> Tensor:
    """`y_i = sigmoid((z_i - t) / temperature)` with the one t for which each row of y sums to k.

    Towards temperature 0 that is 1 for the k largest and 0 for the others. t is found by bisection, then Newton's
    method; the gradient is that of the implicit function, `dy/dz = (diag(v) - v v^T / sum(v)) / temperature` with
    v = y (1 - y). It flows to the logits that are near the threshold on either side, and its rows sum to 0. Twice
    differentiable.

    Args:
        logits: [..., E], any float dtype; -inf for experts that must not be chosen.
        k: what a row sums to, 0 < k <= E; where fewer than k logits are above -inf, these get 1.
        temperature: above 0; a tensor that broadcasts against the logits may require gradients.

    Returns:
        [..., E] float32 (float64 for float64 logits).

    Raises:
        ValueError: k or temperature out of range.
    """
    _checks.is_tensor("soft_topk", "logits", logits, _checks.DATA_DTYPES)
    _checks.is_number("soft_topk", "k", k, above=0.0)
    if logits.dim() < 1 or k > logits.shape[-1]:
        raise ValueError(
            f"moe_ext.soft_topk: logits must be [..., E] with E at least k = {k}, got shape {tuple(logits.shape)}"
        )
    if not isinstance(temperature, Tensor):
        _checks.is_number("soft_topk", "temperature", temperature, above=0.0)
    with no_autocast(logits.device.type):
        return _SoftTopK.apply(wide(logits) / temperature, float(k))


class _SoftTopK(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, k: float) -> Tensor:
        return (z - find_threshold(z, k)).sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        # Of differentiable operations only, and y remembers where it came from, so this can be differentiated again.
        (y,) = ctx.saved_tensors
        v = y * (1 - y)
        # v is 0 throughout where y has saturated: no gradient then, rather than 0 / 0.
        mean = (v * grad_y).sum(-1, keepdim=True) / v.sum(-1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
        return v * (grad_y - mean), None


# An op of its own: its loop, unrolled, keeps Inductor busy for minutes.
@torch.library.custom_op("moe_ext_routing::soft_topk_threshold", mutates_args=())
def find_threshold(z: Tensor, k: float) -> Tensor:
    """[..., E] -> t [..., 1] with sum(sigmoid(z - t)) = k, to the precision of the dtype."""
    possible = z != float("-inf")
    infinity = torch.full_like(z, float("inf"))
    smallest = torch.where(possible, z, infinity).amin(-1, keepdim=True)
    any_possible = possible.any(-1, keepdim=True)
    smallest = torch.where(any_possible, smallest, torch.zeros_like(smallest))
    largest = torch.where(any_possible, z.amax(-1, keepdim=True), torch.zeros_like(smallest))
    # So far outside that sigmoid is 1 for all of a row, or 0 for all of it.
    margin = 40.0 + math.log(z.shape[-1])
    low, high = smallest - margin, largest + margin
    # Bisection brings t close wherever it is, Newton's method then doubles the digits with each step. The bracket keeps
    # it from leaving where the sum is all but flat.
    bisections, newton_steps = (20, 3) if z.dtype == torch.float32 else (32, 4)
    for _ in range(bisections):
        middle = (low + high) / 2
        too_many = (z - middle).sigmoid().sum(-1, keepdim=True) > k
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    threshold = (low + high) / 2
    for _ in range(newton_steps):
        y = (z - threshold).sigmoid()
        slope = (y * (1 - y)).sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        threshold = torch.clamp(threshold + (y.sum(-1, keepdim=True) - k) / slope, low, high)
    return threshold.contiguous()


@find_threshold.register_fake
def _find_threshold_fake(z: Tensor, k: float) -> Tensor:
    return z.new_empty((*z.shape[:-1], 1))


@find_threshold.register_vmap
def _find_threshold_vmap(info: Any, in_dims: tuple[int | None, None], z: Tensor, k: float) -> tuple[Tensor, int]:
    # Rows are on their own, so one more dimension of them changes nothing.
    return find_threshold(z.movedim(in_dims[0] or 0, 0), k), 0


class SoftTopK(Float32Module):
    """The `num_slots` best experts with the weights of `moe_ext.routing.soft_topk`.

    With `num_slots = num_experts` nothing is left out, and the output is differentiable everywhere. With fewer, the
    forward pass is sparse, and the gradient through the weights that were kept still reaches all logits.

    Args:
        num_experts, top_k: E, and what the weights of all experts sum to.
        num_slots: K, how many are kept; None for `top_k`.
        temperature: first value of the buffer `temperature`; anneal with `selection.temperature.fill_(...)`.
        renormalize: divide the weights that were kept by their sum.
        device: of the buffer.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    temperature: Tensor

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        *,
        num_slots: int | None = None,
        temperature: float = 1.0,
        renormalize: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        num_slots = top_k if num_slots is None else num_slots
        _checks.is_int("SoftTopK", "num_experts", num_experts, low=1)
        _checks.is_int("SoftTopK", "top_k", top_k, low=1, high=num_experts, why=" (num_experts)")
        _checks.is_int("SoftTopK", "num_slots", num_slots, low=1, high=num_experts, why=" (num_experts)")
        _checks.is_number("SoftTopK", "temperature", temperature, above=0.0)
        self.num_experts = num_experts
        self.top_k = top_k
        self.num_slots = num_slots
        self.renormalize = renormalize
        self.initial_temperature = temperature
        self.register_buffer("temperature", torch.empty((), dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperature to its first value."""
        self.temperature.fill_(self.initial_temperature)

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        shares = soft_topk(router_logits, self.top_k, temperature=self.temperature)
        # By the logits: shares near 1 are equal.
        topk_ids = route(router_logits.detach(), self.num_slots, score="none").topk_ids
        topk_weights = shares.gather(1, topk_ids.long())
        if self.renormalize:
            topk_weights = topk_weights / topk_weights.sum(1, keepdim=True)
        return Routing(topk_weights, topk_ids)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, num_slots={self.num_slots}, "
            f"renormalize={self.renormalize}"
        )
