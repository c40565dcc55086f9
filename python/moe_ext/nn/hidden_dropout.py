"""Dropout within experts, between activation and second product: step by step, as no fused kernel draws numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_ext.nn.activations import activate, is_gated
from moe_ext.ops import combine, gather_rows, grouped_gemm, permute
from moe_ext.routing._random import draw_seed, random

if TYPE_CHECKING:
    from moe_ext.nn.experts import Experts


def experts_with_dropout(experts: Experts, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, rate: float) -> Tensor:
    """`y_t = sum_k w_tk W_down (mask_tk * act(W_gate_up x_t + b) / (1 - rate)) + b_down`, as `Experts` without a rate.

    Expert dropout of the Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, section 2.4): 0.4 within experts and
    0.1 elsewhere when fine-tuning. A recomputed forward draws the same masks.

    Args:
        experts: whose weights and options to use.
        x: [T, H]. topk_weights, topk_ids: [T, K].
        rate: share of the hidden values that become 0, in [0, 1).
    """
    perm = permute(topk_ids, experts.num_experts)
    slot_of_row = perm.row_to_slot.clamp(min=0)
    weights = topk_weights
    if experts.apply_weights == "input":
        of_rows = topk_weights.flatten()[slot_of_row]
        rows, gather = (gather_rows(x, perm) * of_rows[:, None]).to(x.dtype), None
        weights = torch.ones_like(topk_weights)
    else:
        rows, gather = x, slot_of_row // topk_ids.shape[1]
    preact = grouped_gemm(
        rows,
        experts.w_gate_up,
        perm.expert_offsets,
        bias=experts.b_gate_up,
        transposed=experts.transposed,
        gather=gather,
    )
    if experts.interleaved and is_gated(experts.activation):
        preact = preact.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    act = activate(preact.float() if preact.dtype != torch.float64 else preact, experts.activation, experts.alpha,
                   experts.limit)  # fmt: skip
    kept = random(draw_seed(x.device), tuple(act.shape), "uniform") >= rate
    act = torch.where(kept, act / (1 - rate), 0).to(preact.dtype)
    rows = grouped_gemm(act, experts.w_down, perm.expert_offsets, bias=experts.b_down, transposed=experts.transposed)
    return combine(rows, weights, perm)
