"""Routers as modules: hidden states in, (weights, experts, logits) out."""

from moe_ext.routing.expert_bias import update_expert_bias
from moe_ext.routing.topk_router import RouterOutput, TopKRouter

__all__ = ["RouterOutput", "TopKRouter", "update_expert_bias"]
