"""fused_experts_int8: the experts with weights in int8 and activations that are rounded to int8 row by row."""

import torch
from torch import Tensor

from moe_ext.reference.activations import activate
from moe_ext.reference.combine import combine
from moe_ext.reference.permute import permute
from moe_ext.reference.precision import take_rows


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row (along the last dimension) as ``values * scale``, values integers of magnitude up to 127.

    ``scale = largest magnitude / 127`` in float32, values rounded to the nearest, ties to even. Rows with a scale below
    the smallest normal float32 have scale 0 and zeros; those with a NaN or an infinity have scale NaN and zeros.

    Returns:
        int8 of the shape of ``rows``, float32 of that shape without its last dimension.
    """
    wide = rows.float()
    largest = wide.abs().amax(dim=-1) if rows.shape[-1] else wide.new_zeros(rows.shape[:-1])
    scale = largest / 127
    scale = torch.where(scale < torch.finfo(torch.float32).smallest_normal, 0.0, scale)
    usable = largest.isfinite() & (scale > 0)
    values = torch.where(usable[..., None], (wide * (1 / scale)[..., None]).round(), 0.0)
    return values.to(torch.int8), torch.where(largest.isfinite(), scale, torch.nan)


def fused_experts_int8(
    x: Tensor,
    experts: tuple[Tensor, Tensor, Tensor, Tensor],
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    activation: str = "swiglu",
    alpha: float = 1.702,
    limit: float = 7.0,
    b_gate_up: Tensor | None = None,
    b_down: Tensor | None = None,
    interleaved: bool = False,
    apply_weights: str = "output",
) -> Tensor:
    """``y[t] = sum over k of w * (W_down act(W_gate_up x[t] + b_gate_up) + b_down)``, both products in int8.

    A product is the exact sum of products of integers, rounded to float32, times the scale of the row, times the scale
    of the channel, plus the bias. Not differentiable.

    Args:
        x: ``[T, H]``.
        experts: ``w_gate_up [E, G, H]`` int8, its scales ``[E, G]`` float32, ``w_down [E, H, I]`` int8, its scales
            ``[E, H]``.
        topk_weights, topk_ids, activation, alpha, limit, interleaved, apply_weights: see ``fused_experts``. With
            ``apply_weights="input"`` the weight multiplies the scale of the row.
        b_gate_up, b_down: ``[E, G]`` and ``[E, H]``.

    Returns:
        ``[T, H]`` in the dtype of x.
    """
    if apply_weights not in ("output", "input"):
        raise ValueError(f"apply_weights: expected 'output' or 'input', got {apply_weights!r}")
    w_gate_up, w_gate_up_scale, w_down, w_down_scale = experts
    permutation = expert_offsets, row_to_slot, slot_to_row = permute(topk_ids, w_down.shape[0])
    num_rows = int(expert_offsets[-1])
    row_to_slot = row_to_slot[:num_rows]
    token = row_to_slot.div(slot_to_row.shape[1], rounding_mode="floor") if num_rows else row_to_slot

    values, scales = quantize_rows(x)
    row_values, row_scales = values[token.long()], scales[token.long()]
    if apply_weights == "input":
        row_scales = row_scales * take_rows(topk_weights.float().flatten(), row_to_slot)
        topk_weights = torch.ones_like(topk_weights)
    preact = _product(row_values, row_scales, w_gate_up, w_gate_up_scale, expert_offsets, b_gate_up)
    hidden = activate(preact, activation, alpha=alpha, limit=limit, interleaved=interleaved)
    row_values, row_scales = quantize_rows(hidden)
    rows = _product(row_values, row_scales, w_down, w_down_scale, expert_offsets, b_down).to(x.dtype)
    padded = rows.new_zeros(topk_ids.numel(), x.shape[1])
    padded[:num_rows] = rows
    return combine(padded, topk_weights, permutation)


def _product(
    values: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, expert_offsets: Tensor, bias: Tensor | None
) -> Tensor:
    """float32 ``[rows, channels]``. float64 holds every sum of products of int8 exactly."""
    out = scales.new_empty(values.shape[0], weight.shape[1])
    for expert in range(weight.shape[0]):
        rows = slice(int(expert_offsets[expert]), int(expert_offsets[expert + 1]))
        sums = (values[rows].double() @ weight[expert].double().mT).float()
        out[rows] = sums * scales[rows, None] * weight_scales[expert]
        if bias is not None:
            out[rows] += bias[expert].float()
    return out
