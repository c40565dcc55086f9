"""grouped_gemm: every expert's rows times that expert's weight."""

from itertools import pairwise

import torch
from torch import Tensor

from moe_ext.reference.precision import compute_dtype


def grouped_gemm(
    rows: Tensor,
    weight: Tensor,
    expert_offsets: Tensor,
    *,
    bias: Tensor | None = None,
    transposed: bool = False,
    gather: Tensor | None = None,
) -> Tensor:
    """``out[r] = weight[e] @ rows[r] + bias[e]`` for the rows r of each expert e.

    Differentiable in rows, weight and bias. The gradients of an expert without rows are exact zeros.

    Args:
        rows: ``[R, C]``; with ``gather``, ``[N, C]`` for any N.
        weight: ``[E, N, C]``, or ``[E, C, N]`` if ``transposed``, in the dtype of rows.
        expert_offsets: ``[E + 1]``, integers.
        bias: ``[E, N]`` in the dtype of rows.
        gather: ``[R]``, integers: row r of the GEMM is ``rows[gather[r]]``. Entries at and past ``expert_offsets[E]``
            are not read.

    Returns:
        ``[R, N]`` in the dtype of rows, zero at and past ``expert_offsets[E]``.
    """
    compute = compute_dtype(rows.dtype)
    offsets: list[int] = expert_offsets.tolist()
    num_rows = rows.shape[0] if gather is None else gather.shape[0]
    wide = rows.to(compute)
    wide = wide[: offsets[-1]] if gather is None else wide[gather[: offsets[-1]].long()]

    per_expert = torch.split(wide, [end - begin for begin, end in pairwise(offsets)])
    matrices = (weight if transposed else weight.mT).to(compute).unbind()  # each [C, N]
    outputs = [segment @ matrix for segment, matrix in zip(per_expert, matrices, strict=True)]
    if bias is not None:
        outputs = [output + vector for output, vector in zip(outputs, bias.to(compute).unbind(), strict=True)]
    width = weight.shape[2] if transposed else weight.shape[1]
    outputs.append(wide.new_zeros(num_rows - offsets[-1], width))
    return torch.cat(outputs).to(rows.dtype)
