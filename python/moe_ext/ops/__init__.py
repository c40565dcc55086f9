"""One function per op, in the order of the data: route, permute, gather_rows, grouped_gemm, combine; fused_experts.

route_top_p is route with a number of experts that varies; expert_choice, auction and sinkhorn are other ways to route;
slot_positions and expert_histogram say who gets a place at an expert. fused_experts_int8 is fused_experts with weights
in int8, soft_dispatch and soft_combine are the mixing of Soft MoE, and noise makes the random numbers of routers.

Importing this package registers the fake kernels, derivatives and autocast rules of ``torch.ops.moe_ext.*``. It is
imported by ``moe_ext`` itself, before anything can trace an op.
"""

from .auction import auction
from .combine import combine
from .expert_choice import expert_choice
from .fused_experts import fused_experts
from .fused_experts_int8 import Int8Experts, fused_experts_int8, quantize_experts
from .gather_rows import gather_rows
from .grouped_gemm import grouped_gemm
from .noise import noise
from .packed_experts import PackedExperts
from .permute import permute
from .route import route, route_with_statistics
from .route_top_p import route_top_p
from .sinkhorn import sinkhorn
from .slot_positions import expert_histogram, slot_positions
from .soft_moe import soft_combine, soft_dispatch
from .types import ExpertChoices, Permutation, Routing, RoutingWithStatistics, SlotPositions

__all__ = [
    "ExpertChoices",
    "Int8Experts",
    "PackedExperts",
    "Permutation",
    "Routing",
    "RoutingWithStatistics",
    "SlotPositions",
    "auction",
    "combine",
    "expert_choice",
    "expert_histogram",
    "fused_experts",
    "fused_experts_int8",
    "gather_rows",
    "grouped_gemm",
    "noise",
    "permute",
    "quantize_experts",
    "route",
    "route_top_p",
    "route_with_statistics",
    "sinkhorn",
    "slot_positions",
    "soft_combine",
    "soft_dispatch",
]
