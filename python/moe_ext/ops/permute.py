"""permute: expert ids to the order of rows sorted by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._library import fake, raw
from .types import Permutation


def permute(topk_ids: Tensor, num_experts: int) -> Permutation:
    """Sorts the slots of all tokens by (expert, token, k): a stable counting sort, the same on every backend.

    The rows need no padding and no expert has a capacity: the layout is that of MegaBlocks (Gale et al. 2022,
    arXiv:2211.15841) with blocks of one row. Not differentiable; ids are integers.

    Args:
        topk_ids: ``[num_tokens, top_k]`` int32 or int64. An id below 0 or not below ``num_experts`` is a sentinel:
            its slot goes to no expert.
        num_experts: number of experts, 1..2^31 - 2.

    Returns:
        ``Permutation(expert_offsets, row_to_slot, slot_to_row)``, all int32, on the device of ``topk_ids``. Sizes
        depend on the shape of ``topk_ids`` and on ``num_experts`` alone, so nothing waits for the device.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ``topk_ids`` not two-dimensional, or ``num_experts`` out of range.
    """
    _checks.is_tensor("permute", "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank("permute", "topk_ids", topk_ids, "num_tokens, top_k")
    _checks.is_int("permute", "num_experts", num_experts, low=1, high=2**31 - 2, why=" (offsets are int32)")
    return Permutation(*_permute(topk_ids, num_experts))


@fake("permute")
def _permute_fake(topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, top_k = topk_ids.shape
    return (
        topk_ids.new_empty((num_experts + 1,), dtype=torch.int32),
        topk_ids.new_empty((num_tokens * top_k,), dtype=torch.int32),
        topk_ids.new_empty((num_tokens, top_k), dtype=torch.int32),
    )


_permute = raw("permute")
