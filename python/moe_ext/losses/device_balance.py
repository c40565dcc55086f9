"""Balance between devices instead of experts: their load, and the tokens sent to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._balance import Balance, Score, measure
from moe_ext.losses._reductions import count_over_group, mean_over_sequences, per_sequence
from moe_ext.ops import _checks


def device_balance_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    num_devices: int,
    *,
    expert_devices: Tensor | None = None,
    score: Score = "softmax",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Auxiliary loss that is smallest when every device gets the same load. No coefficient is applied.

    `L = sum_d f'_d P'_d`, where f'_d is the mean over the experts of device d of `f_e = E c_e / (K S)` and P'_d the
    sum over them of their mean probabilities. Balance gives 1. DeepSeekMoE, arXiv:2401.06066, eq. 15-17 (coefficient
    0.05 there). The gradient flows through P only.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64; sentinels (< 0 or >= E) are not counted.
        num_devices: D.
        expert_devices: [E] int32 or int64, the device of each expert, 0..D-1. None for E / D consecutive experts each.
        score, num_sequences, token_mask, group: as in `load_balancing_loss`.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, or E is not a multiple of D and no `expert_devices` are given.
    """
    function = "losses.device_balance_loss"
    balance = measure(
        function,
        router_logits,
        topk_ids,
        score=score,
        num_sequences=num_sequences,
        token_mask=token_mask,
        group=group,
    )
    devices = _devices(function, balance, num_devices, expert_devices)
    on_device = _membership(devices, num_devices).to(balance.probability.dtype)
    load = _per_device(balance.load("share"), on_device) / on_device.sum(0).clamp(min=1)
    loss = (load * _per_device(balance.probability, on_device)).sum(1)
    return mean_over_sequences(loss, balance.num_tokens)


def communication_balance_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    num_devices: int,
    devices_per_token: int,
    *,
    expert_devices: Tensor | None = None,
    score: Score = "softmax",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Auxiliary loss that is smallest when every device is sent the same number of tokens. No coefficient is applied.

    `L = sum_d f''_d P''_d`, with `f''_d = D / (M S) #{tokens sent to device d}`, where a token counts once per device
    however many of its experts are there, and P''_d the sum over the experts of d of their mean probabilities. If
    every token goes to exactly M devices, balance gives 1. DeepSeek-V2, arXiv:2405.04434, eq. 29-31 (coefficient 0.02
    there). The gradient flows through P'' only.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64; sentinels (< 0 or >= E) are sent nowhere.
        num_devices: D.
        devices_per_token: M, the most devices a token may be sent to.
        expert_devices: as in `device_balance_loss`.
        score, num_sequences, token_mask, group: as in `load_balancing_loss`.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: as `device_balance_loss`, and M outside 1..D.
    """
    function = "losses.communication_balance_loss"
    balance = measure(
        function,
        router_logits,
        topk_ids,
        score=score,
        num_sequences=num_sequences,
        token_mask=token_mask,
        group=group,
    )
    devices = _devices(function, balance, num_devices, expert_devices)
    _checks.is_int(function, "devices_per_token", devices_per_token, low=1, high=num_devices, why=" (num_devices)")
    dtype = balance.probability.dtype

    ids = balance.topk_ids.long()
    num_experts = devices.shape[0]
    slot_device = devices[ids.clamp(0, num_experts - 1)]
    is_sent = (ids >= 0) & (ids < num_experts) & (slot_device >= 0) & (slot_device < num_devices)
    # Column D takes the slots that are sent nowhere.
    sent = torch.zeros(ids.shape[0], num_devices + 1, dtype=torch.bool, device=ids.device)
    sent = sent.scatter(1, slot_device.masked_fill(~is_sent, num_devices), True)[:, :num_devices]
    received = count_over_group(per_sequence(sent.to(dtype), num_sequences), group)
    traffic = received * num_devices / (devices_per_token * balance.num_tokens.clamp(min=1)[:, None])
    loss = (traffic * _per_device(balance.probability, _membership(devices, num_devices).to(dtype))).sum(1)
    return mean_over_sequences(loss, balance.num_tokens)


def _devices(function: str, balance: Balance, num_devices: int, expert_devices: Tensor | None) -> Tensor:
    """[E] int64, the device of each expert."""
    num_experts = balance.counts.shape[1]
    _checks.is_int(function, "num_devices", num_devices, low=1, high=num_experts, why=" (num_experts)")
    if expert_devices is None:
        if num_experts % num_devices:
            raise ValueError(
                f"moe_ext.{function}: num_devices must divide num_experts = {num_experts} unless expert_devices are "
                f"given, got {num_devices}"
            )
        return torch.arange(num_experts, device=balance.counts.device) // (num_experts // num_devices)
    _checks.is_tensor(function, "expert_devices", expert_devices, _checks.ID_DTYPES)
    _checks.has_shape(function, "expert_devices", expert_devices, "num_experts", (num_experts,))
    return expert_devices.long()


def _membership(devices: Tensor, num_devices: int) -> Tensor:
    """[E, D] bool."""
    return devices[:, None] == torch.arange(num_devices, device=devices.device)


def _per_device(x: Tensor, on_device: Tensor) -> Tensor:
    """[B, E] -> [B, D], the sum over the experts of each device."""
    return (x[:, :, None] * on_device).sum(1)
