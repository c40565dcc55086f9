"""permute: expert ids to the order of rows sorted by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._library import fake, raw
from .types import Permutation

DROP_ORDERS = ("token", "choice")


def permute(
    topk_ids: Tensor, num_experts: int, *, capacity: int | None = None, drop_order: str = "token"
) -> Permutation:
    """Sorts the slots of all tokens by (expert, token, k): a stable counting sort, the same on every backend.

    The rows need no padding: the layout is that of MegaBlocks (Gale et al. 2022, arXiv:2211.15841) with blocks of one
    row. With a ``capacity``, slots that an expert has no room for are dropped: they get no row, as if their ids were
    sentinels, and the kept rows keep their order. Not differentiable; ids are integers.

    Args:
        topk_ids: ``[num_tokens, top_k]`` int32 or int64. An id below 0 or not below ``num_experts`` is a sentinel:
            its slot goes to no expert.
        num_experts: number of experts, 1..2^31 - 2.
        capacity: an expert gets at most this many rows; None is no limit.
        drop_order: who comes first when there is no room for all. "token": the tokens in order, each with all its
            choices (Switch Transformer, arXiv:2101.03961). "choice": the first choices of all tokens, then the second
            choices, ... (GShard, arXiv:2006.16668).

    Returns:
        ``Permutation(expert_offsets, row_to_slot, slot_to_row)``, all int32, on the device of ``topk_ids``. Sizes
        depend on the shape of ``topk_ids`` and on ``num_experts`` alone, so nothing waits for the device.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ``topk_ids`` not two-dimensional, ``num_experts`` or ``capacity`` out of range, an unknown
            ``drop_order``.
    """
    _checks.is_tensor("permute", "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank("permute", "topk_ids", topk_ids, "num_tokens, top_k")
    _checks.is_int("permute", "num_experts", num_experts, low=1, high=2**31 - 2, why=" (offsets are int32)")
    if capacity is not None:
        _checks.is_int("permute", "capacity", capacity, low=0)
    _checks.is_choice("permute", "drop_order", drop_order, DROP_ORDERS)
    return Permutation(*_permute(topk_ids, num_experts, capacity, drop_order))


@fake("permute")
def _permute_fake(
    topk_ids: Tensor, num_experts: int, capacity: int | None = None, drop_order: str = "token"
) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, top_k = topk_ids.shape
    return (
        topk_ids.new_empty((num_experts + 1,), dtype=torch.int32),
        topk_ids.new_empty((num_tokens * top_k,), dtype=torch.int32),
        topk_ids.new_empty((num_tokens, top_k), dtype=torch.int32),
    )


_permute = raw("permute")
