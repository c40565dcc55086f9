"""combine: the weighted sum of every token's rows."""

import torch
from torch import Tensor

from moe_ext.reference.precision import compute_dtype, take_rows


def combine(rows: Tensor, topk_weights: Tensor, permutation: Tensor | tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``y[t] = sum over k of topk_weights[t, k] * rows[slot_to_row[t, k]]``, in float32 and rounded once.

    Slots without a row add nothing, whatever their weight, and their weight gets no gradient. A token without any row
    gets zeros. Differentiable in rows and topk_weights.

    Args:
        rows: ``[R, H]``.
        topk_weights: ``[T, K]``, any floating dtype.
        permutation: what ``permute`` returned, or its ``slot_to_row [T, K]`` alone.

    Returns:
        ``[T, H]`` in the dtype of rows.
    """
    slot_to_row = permutation if isinstance(permutation, Tensor) else permutation[2]
    weights = topk_weights.to(compute_dtype(rows.dtype))
    weights = torch.where(slot_to_row < 0, 0.0, weights)
    chosen = take_rows(rows, slot_to_row)  # [T, K, H]
    total = chosen.new_zeros(chosen.shape[0], chosen.shape[2])
    for k in range(slot_to_row.shape[1]):
        total = total + weights[:, k, None] * chosen[:, k]
    return total.to(rows.dtype)
