"""One function per op, in the order of the data: route, permute, gather_rows, grouped_gemm, combine; fused_experts.

slot_positions and expert_histogram say who gets a place at an expert.

fused_experts_int8 is fused_experts with weights in int8.

Importing this package registers the fake kernels, derivatives and autocast rules of ``torch.ops.moe_ext.*``. It is
imported by ``moe_ext`` itself, before anything can trace an op.
"""

from .combine import combine
from .fused_experts import fused_experts
from .fused_experts_int8 import Int8Experts, fused_experts_int8, quantize_experts
from .gather_rows import gather_rows
from .grouped_gemm import grouped_gemm
from .packed_experts import PackedExperts
from .permute import permute
from .route import route, route_with_statistics
from .slot_positions import expert_histogram, slot_positions
from .types import Permutation, Routing, RoutingWithStatistics, SlotPositions

__all__ = [
    "Int8Experts",
    "PackedExperts",
    "Permutation",
    "Routing",
    "RoutingWithStatistics",
    "SlotPositions",
    "combine",
    "expert_histogram",
    "fused_experts",
    "fused_experts_int8",
    "gather_rows",
    "grouped_gemm",
    "permute",
    "quantize_experts",
    "route",
    "route_with_statistics",
    "slot_positions",
]
