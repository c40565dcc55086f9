"""Mixture-of-Experts operators for PyTorch: route, permute, grouped_gemm, combine.

The functions below are the public ops; ``torch.ops.moe_ext.*`` are the raw ones underneath. Importing this package
loads the extension and registers shapes, derivatives and autocast rules, so that everything works in eager mode, under
``torch.compile`` and in ``torch.export``. Layers, routers and losses are in :mod:`moe_ext.nn`, :mod:`moe_ext.routing`
and :mod:`moe_ext.losses`; the same operators in plain PyTorch are in :mod:`moe_ext.reference`.
"""

from importlib import import_module as _import_module
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType

from . import _versions

_versions.check_before_loading()
try:
    # Loading it is what registers torch.ops.moe_ext.*
    import moe_ext._C as _C
except ImportError as _error:
    raise ImportError(_versions.explain_failed_load(_error)) from _error
_versions.check_after_loading(_C.build_info())

from ._memory import release_memory  # noqa: E402

# Before anything else that has to do with ops: one that is traced without its derivative keeps lacking it.
from .ops import (  # noqa: E402
    ExpertChoices,
    Int8Experts,
    PackedExperts,
    Permutation,
    Routing,
    RoutingWithStatistics,
    SlotPositions,
    auction,
    combine,
    expert_choice,
    expert_histogram,
    fused_experts,
    fused_experts_int8,
    gather_rows,
    grouped_gemm,
    noise,
    permute,
    quantize_experts,
    route,
    route_top_p,
    route_with_statistics,
    sinkhorn,
    slot_positions,
    soft_combine,
    soft_dispatch,
)

try:
    __version__ = _metadata.version("moe_ext")
except _metadata.PackageNotFoundError:
    # Run from a source tree that was never installed.
    __version__ = "0.0.0+source"

_SUBPACKAGES = ("losses", "nn", "reference", "routing")


def __getattr__(name: str) -> _ModuleType:
    """``moe_ext.nn`` and its like without an import of their own, loaded when first named."""
    if name in _SUBPACKAGES:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ExpertChoices",
    "Int8Experts",
    "PackedExperts",
    "Permutation",
    "Routing",
    "RoutingWithStatistics",
    "SlotPositions",
    "__version__",
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
    "release_memory",
    "route",
    "route_top_p",
    "route_with_statistics",
    "sinkhorn",
    "slot_positions",
    "soft_combine",
    "soft_dispatch",
]
