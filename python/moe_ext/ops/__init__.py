"""One function per op, in the order of the data: route, permute, gather_rows, grouped_gemm, combine; fused_experts.

Importing this package registers the fake kernels, derivatives and autocast rules of ``torch.ops.moe_ext.*``. It is
imported by ``moe_ext`` itself, before anything can trace an op.
"""

from .combine import combine
from .fused_experts import fused_experts
from .gather_rows import gather_rows
from .grouped_gemm import grouped_gemm
from .packed_experts import PackedExperts
from .permute import permute
from .route import route, route_with_statistics
from .types import Permutation, Routing, RoutingWithStatistics

__all__ = [
    "PackedExperts",
    "Permutation",
    "Routing",
    "RoutingWithStatistics",
    "combine",
    "fused_experts",
    "gather_rows",
    "grouped_gemm",
    "permute",
    "route",
    "route_with_statistics",
]
