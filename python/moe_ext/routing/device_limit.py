"""A limit on what a device computes, instead of on what an expert does (DeepSeek-V2)."""

from typing import Any

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks, slot_positions
from moe_ext.ops.types import Routing
from moe_ext.routing._arguments import Routed, check_routing, exact_ratio
from moe_ext.routing._random import draw_seed, random
from moe_ext.routing.dropping import EPS, keep_slots


def limit_device_load(
    routing: Routed,
    num_experts: int,
    num_devices: int,
    *,
    factor: float = 1.0,
    affinity: Tensor | None = None,
    protected: Tensor | None = None,
    renormalize: bool = False,
    eps: float = EPS,
) -> Routing:
    """Drop the slots of lowest affinity on every device that has more than `factor` times the mean load.

    DeepSeek-V2, arXiv:2405.04434, section 2.2.4. Device i holds the experts i E / R up to (i + 1) E / R. Its budget is
    floor(factor * slots of all devices / R); the slots on it are sorted by falling affinity, and those past the budget
    are dropped, until only protected ones are left. Protected tokens count toward the load and lose nothing. Ties go to
    the earlier choice, then to the earlier token.

    Args:
        routing: topk_weights [T, K] and topk_ids [T, K].
        num_experts, num_devices: E, R; R must divide E.
        factor: capacity factor of a device.
        affinity: [T, K], compared in float32; None: the weights.
        protected: [T] bool, tokens that lose no slot: about a tenth of the training sequences in DeepSeek-V2, see
            `protect_sequences`. None: no token is.
        renormalize, eps: as in `limit_capacity`.

    Returns:
        `Routing` of the same shapes and dtypes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range; R does not divide E.
    """
    _checks.is_number("routing.limit_device_load", "factor", factor, low=0.0)
    ratio = exact_ratio(factor)
    return _limit(routing, num_experts, num_devices, ratio, affinity, protected, renormalize, eps)


def _limit(
    routing: Routed,
    num_experts: int,
    num_devices: int,
    ratio: tuple[int, int],
    affinity: Tensor | None,
    protected: Tensor | None,
    renormalize: bool,
    eps: float,
) -> Routing:
    """`limit_device_load` with its factor as a fraction: inside of torch.compile a float may have no value."""
    name = "routing.limit_device_load"
    topk_weights, topk_ids = check_routing(name, routing)
    _check_devices(name, num_experts, num_devices)
    affinity = topk_weights if affinity is None else affinity
    _checks.is_tensor(name, "affinity", affinity, _checks.DATA_DTYPES)
    _checks.has_shape(name, "affinity", affinity, "num_tokens, top_k", topk_ids.shape)
    affinity = affinity.detach().float()
    if protected is not None:
        _checks.is_tensor(name, "protected", protected, (torch.bool,))
        _checks.has_shape(name, "protected", protected, "num_tokens", topk_ids.shape[:1])
        affinity = affinity.masked_fill(protected.unsqueeze(1), torch.inf)

    is_expert = (topk_ids >= 0) & (topk_ids < num_experts)
    device_ids = topk_ids.div(num_experts // num_devices, rounding_mode="floor").where(is_expert, -1)
    positions, counts = slot_positions(device_ids, num_devices, priority=affinity)
    numerator, denominator = ratio
    budget = (counts.sum(dtype=torch.int64) * numerator).div(denominator * num_devices, rounding_mode="floor")
    keep = positions < budget
    if protected is not None:
        keep = keep | protected.unsqueeze(1)
    return keep_slots(topk_weights, topk_ids, keep & is_expert, renormalize, eps)


def protect_sequences(
    num_tokens: int, num_sequences: int, *, rate: float = 0.1, seed: Tensor | None = None, device: Any = None
) -> Tensor:
    """[T] bool: the tokens of randomly chosen sequences, each with probability `rate`, for `limit_device_load`.

    Args:
        num_tokens, num_sequences: T tokens that are sequences of equal length, one after the other.
        rate: share of the sequences. 0.1 in DeepSeek-V2.
        seed: [1] int64 on `device`; None draws one from torch's generator.
        device: of the result, if there is no seed.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; T is not a multiple of the sequences.
    """
    name = "routing.protect_sequences"
    _checks.is_int(name, "num_sequences", num_sequences, low=1)
    _checks.is_number(name, "rate", rate, low=0.0)
    if num_tokens % num_sequences:
        raise ValueError(f"moe_ext.{name}: {num_tokens} tokens do not make {num_sequences} sequences of equal length")
    seed = draw_seed(torch.device("cpu" if device is None else device)) if seed is None else seed
    chosen = random(seed, (num_sequences,), "uniform") < rate
    return chosen.unsqueeze(1).expand(-1, num_tokens // num_sequences).reshape(num_tokens)


class DeviceCapacity(nn.Module):
    """`limit_device_load` while training, and nothing otherwise: inference never drops (arXiv:2405.04434, 2.2.4).

    Args:
        num_experts, num_devices, factor, renormalize: as in `limit_device_load`.
        protect_rate: share of the sequences that lose nothing, drawn anew in every forward.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(
        self,
        num_experts: int,
        num_devices: int,
        *,
        factor: float = 1.0,
        protect_rate: float = 0.1,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        _check_devices("routing.DeviceCapacity", num_experts, num_devices)
        _checks.is_number("routing.DeviceCapacity", "factor", factor, low=0.0)
        _checks.is_number("routing.DeviceCapacity", "protect_rate", protect_rate, low=0.0)
        self.num_experts = num_experts
        self.num_devices = num_devices
        self.factor = factor
        self._ratio = exact_ratio(factor)
        self.protect_rate = protect_rate
        self.renormalize = renormalize

    def forward(
        self,
        routing: Routed,
        *,
        num_sequences: int = 1,
        protected: Tensor | None = None,
        training: bool | None = None,
        **_: object,
    ) -> Routing:
        """The T tokens are `num_sequences` sequences; `protected` [T] bool takes the place of a random choice of them.
        `training` is the module's own unless given."""
        topk_weights, topk_ids = routing.topk_weights, routing.topk_ids
        if not (self.training if training is None else training):
            return Routing(topk_weights, topk_ids)
        if protected is None and self.protect_rate > 0:
            protected = protect_sequences(
                topk_ids.shape[0], num_sequences, rate=self.protect_rate, device=topk_ids.device
            )
        return _limit(routing, self.num_experts, self.num_devices, self._ratio, None, protected, self.renormalize, EPS)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, num_devices={self.num_devices}, factor={self.factor}, "
            f"protect_rate={self.protect_rate}, renormalize={self.renormalize}"
        )


def _check_devices(function: str, num_experts: int, num_devices: int) -> None:
    _checks.is_int(function, "num_experts", num_experts, low=1)
    _checks.is_int(function, "num_devices", num_devices, low=1)
    if num_experts % num_devices:
        raise ValueError(f"moe_ext.{function}: num_devices must divide num_experts = {num_experts}, got {num_devices}")
