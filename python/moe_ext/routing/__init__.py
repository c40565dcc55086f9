"""Routers as modules: hidden states in, (weights, experts, logits) out."""

from moe_ext.routing.expert_bias import update_expert_bias
from moe_ext.routing.logits import LinearLogits
from moe_ext.routing.router import Router, RouterOutput
from moe_ext.routing.selection import TopK
from moe_ext.routing.topk_router import TopKRouter

__all__ = [
    "LinearLogits",
    "Router",
    "RouterOutput",
    "TopK",
    "TopKRouter",
    "update_expert_bias",
]
