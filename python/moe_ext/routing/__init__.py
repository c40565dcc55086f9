"""Routers as modules: hidden states in, (weights, experts, logits) out.

`moe_ext.routing.published` builds those of published models.
"""

from moe_ext.routing import published
from moe_ext.routing.balanced import Balanced, orthogonal_centroids_
from moe_ext.routing.capacity import Capacity
from moe_ext.routing.capacity_rules import dynamic_capacity, expert_capacity
from moe_ext.routing.causal_expert_choice import CausalExpertChoice
from moe_ext.routing.dense_to_sparse import DenseToSparseSelection, annealed_temperature, diversify_experts
from moe_ext.routing.device_limit import DeviceCapacity, limit_device_load, protect_sequences
from moe_ext.routing.dropping import limit_capacity
from moe_ext.routing.expert_bias import update_expert_bias
from moe_ext.routing.expert_choice import ExpertChoice
from moe_ext.routing.expert_choice_capped import ExpertChoiceCapped
from moe_ext.routing.expert_dropout import ExpertDropout, GatingDropout, drop_experts, mask_expert_outputs, skip_experts
from moe_ext.routing.fixed_logits import ConstantLogits, RandomLogits
from moe_ext.routing.geometric import normalize_rows
from moe_ext.routing.grid_logits import GridLogits
from moe_ext.routing.hash_tables import balanced_table, clustered_table, dispersed_table, multi_hash_table, random_table
from moe_ext.routing.hashing import HashSelection, bigram_hash, previous_ids, sequence_positions
from moe_ext.routing.hierarchical import HierarchicalRouter
from moe_ext.routing.jitter import Jitter
from moe_ext.routing.logits import CosineLogits, LinearLogits
from moe_ext.routing.lsh import LSHBuckets
from moe_ext.routing.masks import buffer_rows, dispatch_and_combine_masks, from_buffers, to_buffers
from moe_ext.routing.noise import GaussianNoise, GumbelNoise, LearnedNoise
from moe_ext.routing.random_routing import RandomSelection, random_experts
from moe_ext.routing.reinforce import SampledSelection, reinforce_loss
from moe_ext.routing.relu_gate import ReLUSelection, SparsityController, relu_sparsity, relu_sparsity_loss
from moe_ext.routing.rerouting import reroute_overflow
from moe_ext.routing.router import NoisyLogits, Router, RouterOutput
from moe_ext.routing.second_expert import random_second_expert
from moe_ext.routing.selection import MultiplicativeBias, TopK
from moe_ext.routing.sequence import SequenceRouter, mean_of_sequences
from moe_ext.routing.similarity import ClusterLogits, TokenGraphSmoothing
from moe_ext.routing.sinkhorn import Sinkhorn
from moe_ext.routing.soft_topk import SoftTopK, soft_topk
from moe_ext.routing.sparse_mixer import SparseMixer
from moe_ext.routing.stable_moe import StableMoERouter, TokenRouter
from moe_ext.routing.task import TaskEmbeddingLogits, TaskExperts, TaskLogits
from moe_ext.routing.threshold import ThresholdSelection, initial_threshold_bias, update_threshold_bias
from moe_ext.routing.top2 import Top2
from moe_ext.routing.top_p import TopP
from moe_ext.routing.topk_router import TopKRouter
from moe_ext.routing.weights import NormalizeWeights, Reweigh
from moe_ext.routing.zero_experts import ZeroComputationExperts

__all__ = [
    "Balanced",
    "Capacity",
    "CausalExpertChoice",
    "ClusterLogits",
    "ConstantLogits",
    "CosineLogits",
    "DenseToSparseSelection",
    "DeviceCapacity",
    "ExpertChoice",
    "ExpertChoiceCapped",
    "ExpertDropout",
    "GatingDropout",
    "GaussianNoise",
    "GridLogits",
    "GumbelNoise",
    "HashSelection",
    "HierarchicalRouter",
    "Jitter",
    "LSHBuckets",
    "LearnedNoise",
    "LinearLogits",
    "MultiplicativeBias",
    "NoisyLogits",
    "NormalizeWeights",
    "RandomLogits",
    "RandomSelection",
    "ReLUSelection",
    "Reweigh",
    "Router",
    "RouterOutput",
    "SampledSelection",
    "SequenceRouter",
    "Sinkhorn",
    "SoftTopK",
    "SparseMixer",
    "SparsityController",
    "StableMoERouter",
    "TaskEmbeddingLogits",
    "TaskExperts",
    "TaskLogits",
    "ThresholdSelection",
    "TokenGraphSmoothing",
    "TokenRouter",
    "Top2",
    "TopK",
    "TopKRouter",
    "TopP",
    "ZeroComputationExperts",
    "annealed_temperature",
    "balanced_table",
    "bigram_hash",
    "buffer_rows",
    "clustered_table",
    "dispatch_and_combine_masks",
    "dispersed_table",
    "diversify_experts",
    "drop_experts",
    "dynamic_capacity",
    "expert_capacity",
    "from_buffers",
    "initial_threshold_bias",
    "limit_capacity",
    "limit_device_load",
    "mask_expert_outputs",
    "mean_of_sequences",
    "multi_hash_table",
    "normalize_rows",
    "orthogonal_centroids_",
    "previous_ids",
    "protect_sequences",
    "published",
    "random_experts",
    "random_second_expert",
    "random_table",
    "reinforce_loss",
    "relu_sparsity",
    "relu_sparsity_loss",
    "reroute_overflow",
    "sequence_positions",
    "skip_experts",
    "soft_topk",
    "to_buffers",
    "update_expert_bias",
    "update_threshold_bias",
]
