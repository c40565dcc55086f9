"""The MoE layer again, token by token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext import reference
from moe_ext.nn import MoE


def moe(layer: MoE, x: Tensor) -> Tensor:
    """What `layer` should return for x [..., H], with gradients to all its parameters."""
    router, experts, shared = layer.router, layer.experts, layer.shared_expert
    tokens = x.reshape(-1, x.shape[-1])
    logits = F.linear(tokens, router.weight.to(x.dtype), None if router.bias is None else router.bias.to(x.dtype))
    weights, ids = reference.route(
        logits,
        router.top_k,
        bias=router.expert_bias,
        **router.options,
    )
    rows = []
    for t in range(tokens.shape[0]):
        row = torch.zeros_like(tokens[t])
        for k in range(router.top_k):
            e, w = int(ids[t, k]), weights[t, k].to(x.dtype)
            inside, outside = (w, 1) if experts.apply_weights == "input" else (1, w)
            b_gate_up = None if experts.b_gate_up is None else experts.b_gate_up[e]
            b_down = None if experts.b_down is None else experts.b_down[e]
            hidden = F.linear(inside * tokens[t : t + 1], experts.w_gate_up[e], b_gate_up)
            hidden = reference.activate(hidden, experts.activation, alpha=experts.alpha, limit=experts.limit)
            row = row + outside * F.linear(hidden, experts.w_down[e], b_down)[0]
        rows.append(row)
    y = torch.stack(rows) if rows else 0 * tokens
    if shared is not None:
        hidden = reference.activate(
            F.linear(tokens, shared.w_gate_up, shared.b_gate_up),
            shared.activation,
            alpha=shared.alpha,
            limit=shared.limit,
        )
        dense = F.linear(hidden, shared.w_down, shared.b_down)
        y = y + (dense if shared.w_gate is None else dense * torch.sigmoid(tokens @ shared.w_gate[0])[:, None])
    return y.reshape(x.shape)
