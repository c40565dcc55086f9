"""sinkhorn: logits to a matrix with equal row sums and equal column sums."""

from __future__ import annotations

from torch import Tensor

from . import _checks
from ._library import fake, raw
from .expert_choice import _has_experts, _wide


def sinkhorn(logits: Tensor, *, tolerance: float = 1e-4, max_iterations: int = 100) -> Tensor:
    """``diag(u) exp(logits) diag(v)`` with rows that sum to one and columns that sum to ``num_tokens / num_experts``.

    The balanced matrix of S-BASE routing (Clark et al. 2022, arXiv:2202.01169, appendix B), by alternately scaling
    rows and columns (Sinkhorn 1967). The maximum of each row is subtracted first. Rows are scaled last, so they sum to
    one exactly and columns within the tolerance. On a CUDA device ``max_iterations`` launches are made whatever
    happens, and those after the last needed one do nothing: the host never waits. Not differentiable.

    Args:
        logits: ``[num_tokens, num_experts]``, float32, bfloat16, float16 or float64. NaN counts as -inf, +inf as the
            largest finite float32. A row of -inf alone (padding) becomes zeros and does not count in num_tokens above.
            Where -inf forbids so much that no balanced matrix is left, columns are as near as it lets them be when
            ``max_iterations`` are over or factors have become 1e-30; rows still sum to one.
        tolerance: the iteration stops when v changes by no more than this, relative to itself, in the mean over the
            experts: when the sums of columns are off by so much. Megatron-LM stops by the absolute change.
        max_iterations: and after so many at the latest.

    Returns:
        ``[num_tokens, num_experts]`` float32 (float64 for float64 logits).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or range.
    """
    _checks.is_tensor("sinkhorn", "logits", logits, _checks.DATA_DTYPES)
    _checks.has_rank("sinkhorn", "logits", logits, "num_tokens, num_experts")
    _has_experts("sinkhorn", "logits", logits.shape[1])
    _checks.is_number("sinkhorn", "tolerance", tolerance, low=0.0)
    _checks.is_int("sinkhorn", "max_iterations", max_iterations, low=0)
    result: Tensor = _sinkhorn(_wide(logits), float(tolerance), max_iterations)
    return result


@fake("sinkhorn")
def _sinkhorn_fake(logits: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    return logits.new_empty(logits.shape)


_sinkhorn = raw("sinkhorn")
