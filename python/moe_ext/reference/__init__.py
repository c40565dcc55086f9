"""The slow, obvious truth: every public op again, in plain PyTorch.

Nothing here is fast and nothing here is clever. Each function takes the arguments of its namesake in ``moe_ext``
and returns plain tensors or tuples of them. All of it runs in float64, float32, float16 and bfloat16, on any device,
and is differentiated by PyTorch's own autograd. It stands alone: no file in this folder imports anything of
``moe_ext`` outside of it.

Run in float64 it is the truth that tests measure against. Run in a lower precision it rounds where a sensible fused
kernel rounds, so that its own error is the yardstick for that kernel's error:

* the router computes in float32 (float64 for float64 logits), whatever the dtype of the logits;
* a GEMM multiplies and sums in float32, adds its bias there and rounds its output to the data dtype once;
* an activation computes in float32 from the rounded output of the GEMM and rounds once;
* ``combine`` sums over k = 0 .. K-1 in float32 and rounds once; so do the gradients that sum over several rows.
"""

from moe_ext.reference.activations import ACTIVATIONS, GATED_ACTIVATIONS, UNGATED_ACTIVATIONS, activate
from moe_ext.reference.assign import auction, expert_choice, sinkhorn
from moe_ext.reference.combine import combine
from moe_ext.reference.fused_experts import fused_experts
from moe_ext.reference.fused_experts_int8 import fused_experts_int8, quantize_rows
from moe_ext.reference.grouped_gemm import grouped_gemm
from moe_ext.reference.mxfp8 import mxfp8_decode, mxfp8_encode, mxfp8_row_bytes
from moe_ext.reference.noise import noise, philox
from moe_ext.reference.permute import gather_rows, permute
from moe_ext.reference.positions import slot_positions
from moe_ext.reference.route import route, route_with_statistics
from moe_ext.reference.route_top_p import route_top_p
from moe_ext.reference.soft_moe import soft_combine, soft_dispatch

__all__ = [
    "ACTIVATIONS",
    "GATED_ACTIVATIONS",
    "UNGATED_ACTIVATIONS",
    "activate",
    "auction",
    "combine",
    "expert_choice",
    "fused_experts",
    "fused_experts_int8",
    "gather_rows",
    "grouped_gemm",
    "mxfp8_decode",
    "mxfp8_encode",
    "mxfp8_row_bytes",
    "noise",
    "permute",
    "philox",
    "quantize_rows",
    "route",
    "route_top_p",
    "route_with_statistics",
    "sinkhorn",
    "slot_positions",
    "soft_combine",
    "soft_dispatch",
]
