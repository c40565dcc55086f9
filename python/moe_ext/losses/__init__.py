"""Auxiliary losses of MoE training: what keeps the experts evenly used and the router's logits small.

All are scalars without coefficient, float32 (float64 for float64 input) whatever surrounds them. Most take
`num_sequences` (a loss per sequence, or group of tokens, instead of one of the micro-batch), `token_mask` (padding)
and `group` (statistics over the ranks of a process group). Those without `group` are means over tokens, which averaged
over equally large ranks are those of all tokens, unless their documentation says otherwise.
"""

from moe_ext.losses.accumulated import AccumulatedRouting, topk_probability_loss
from moe_ext.losses.auxiliary import AuxiliaryLossScale, add_auxiliary_loss
from moe_ext.losses.coefficient_of_variation import (
    importance_loss,
    soft_importance_loss,
    squared_coefficient_of_variation,
)
from moe_ext.losses.consistency import consistency_loss
from moe_ext.losses.contrastive import expert_contrastive_loss, task_contrastive_loss
from moe_ext.losses.counts import expert_counts
from moe_ext.losses.depth import depth_predictor_loss, token_selection_loss
from moe_ext.losses.device_balance import communication_balance_loss, device_balance_loss
from moe_ext.losses.entropy import global_entropy_loss, local_entropy_loss
from moe_ext.losses.jacobs import competitive_loss, cooperative_loss, mixture_likelihood_loss
from moe_ext.losses.load_balancing import load_balancing_loss
from moe_ext.losses.localized_balance import localized_balance_loss, sample_importance
from moe_ext.losses.mutual_information import TaskExpertStatistics, mutual_information_loss
from moe_ext.losses.router_z import router_z_loss
from moe_ext.losses.smooth_load import load_loss, selection_probability
from moe_ext.losses.stable_moe import overload_loss, routing_distillation_loss
from moe_ext.losses.statistics import StatisticsLosses, losses_from_statistics
from moe_ext.losses.ste_balance import straight_through_balance_loss, straight_through_load
from moe_ext.losses.variance import cluster_variance_loss

__all__ = [
    "AccumulatedRouting",
    "AuxiliaryLossScale",
    "StatisticsLosses",
    "TaskExpertStatistics",
    "add_auxiliary_loss",
    "cluster_variance_loss",
    "communication_balance_loss",
    "competitive_loss",
    "consistency_loss",
    "cooperative_loss",
    "depth_predictor_loss",
    "device_balance_loss",
    "expert_contrastive_loss",
    "expert_counts",
    "global_entropy_loss",
    "importance_loss",
    "load_balancing_loss",
    "load_loss",
    "local_entropy_loss",
    "localized_balance_loss",
    "losses_from_statistics",
    "mixture_likelihood_loss",
    "mutual_information_loss",
    "overload_loss",
    "router_z_loss",
    "routing_distillation_loss",
    "sample_importance",
    "selection_probability",
    "soft_importance_loss",
    "squared_coefficient_of_variation",
    "straight_through_balance_loss",
    "straight_through_load",
    "task_contrastive_loss",
    "token_selection_loss",
    "topk_probability_loss",
]
