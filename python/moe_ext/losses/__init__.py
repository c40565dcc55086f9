"""Auxiliary losses of MoE training: what keeps the experts evenly used and the router's logits small."""

from moe_ext.losses.auxiliary import add_auxiliary_loss
from moe_ext.losses.counts import expert_counts
from moe_ext.losses.load_balancing import load_balancing_loss
from moe_ext.losses.router_z import router_z_loss

__all__ = ["add_auxiliary_loss", "expert_counts", "load_balancing_loss", "router_z_loss"]
