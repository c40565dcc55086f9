"""Layers: a whole MoE feed-forward layer, and the parts it is made of."""

from moe_ext.nn.balancing import update_expert_biases
from moe_ext.nn.experts import Experts
from moe_ext.nn.metrics import RoutingMetrics, overflow_by_choice, padding_waste, routing_churn, routing_metrics
from moe_ext.nn.moe import MoE, MoELosses, MoEOutput
from moe_ext.nn.plots import plot_load
from moe_ext.nn.quantized_experts import QuantizedExperts
from moe_ext.nn.shared_expert import SharedExpert
from moe_ext.nn.soft_moe import SlotLogits, SoftMoE

__all__ = [
    "Experts",
    "MoE",
    "MoELosses",
    "MoEOutput",
    "QuantizedExperts",
    "RoutingMetrics",
    "SharedExpert",
    "SlotLogits",
    "SoftMoE",
    "overflow_by_choice",
    "padding_waste",
    "plot_load",
    "routing_churn",
    "routing_metrics",
    "update_expert_biases",
]
