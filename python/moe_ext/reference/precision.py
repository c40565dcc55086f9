"""In which dtype the reference computes, and how it picks rows without rounding their gradients twice."""

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are formed in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` along the first dimension in the compute dtype, with a zero row where ``index`` is negative.

    The result is exact. It stays in the compute dtype so that a row taken several times sums its gradients there,
    and they are rounded to the dtype of ``values`` once.

    Args:
        values: ``[N, ...]``.
        index: integers of any shape, below N; negative means "no row".

    Returns:
        ``[*index.shape, *values.shape[1:]]``.
    """
    zero_row = values.new_zeros((1, *values.shape[1:]))
    padded = torch.cat([values, zero_row]).to(compute_dtype(values.dtype))
    return padded[torch.where(index < 0, values.shape[0], index.long())]
