"""Geometric MoE: experts give the direction, the router the length."""

from typing import Literal

from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide


def normalize_rows(rows: Tensor, *, to: Literal["norm", "rms"] = "norm", eps: float = 1e-6) -> Tensor:
    """Rows of length 1, or of mean square 1: what the experts gave, before `moe_ext.combine`.

    `y = sum over the chosen i of rho_i v_i / |v_i|` with unnormalised rho_i >= 0 (Su Jianlin, "MoE tour" part 1,
    kexue.fm/archives/10699), in which the best K terms are those with the largest rho. An RMSNorm without a weight
    differs by sqrt(H)::

        rows = moe_ext.grouped_gemm(hidden, w_down, permutation.expert_offsets)
        y = moe_ext.combine(normalize_rows(rows), topk_weights, permutation)

    Args:
        rows: [..., H], any float dtype. Rows of zeros stay zeros.
        to: "norm" divides by `sqrt(sum v^2 + eps^2)`, "rms" by `sqrt(mean v^2 + eps^2)`.
        eps: see `to`.

    Returns:
        [..., H] in the dtype of `rows`.

    Raises:
        TypeError, ValueError: rows of another dtype, an unknown `to`, or an eps that is not above 0.
    """
    _checks.is_tensor("normalize_rows", "rows", rows, _checks.DATA_DTYPES)
    _checks.is_choice("normalize_rows", "to", to, ("norm", "rms"))
    _checks.is_number("normalize_rows", "eps", eps, above=0.0)
    with no_autocast(rows.device.type):
        v = wide(rows)
        square = v.square().sum(-1, keepdim=True) if to == "norm" else v.square().mean(-1, keepdim=True)
        return (v * (square + eps**2).rsqrt()).to(rows.dtype)
