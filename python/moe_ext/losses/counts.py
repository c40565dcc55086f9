"""How many slots each expert got: the one count that losses, metrics and bias updates share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import check_sequences, checked_mask, is_counted
from moe_ext.losses._reductions import count_over_group
from moe_ext.ops import _checks


def expert_counts(
    topk_ids: Tensor,
    num_experts: int,
    num_sequences: int = 1,
    *,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Count the slots assigned to each expert, per sequence.

    Args:
        topk_ids: [T, K] int32 or int64. Ids below 0 or at and above `num_experts` are sentinels and not counted.
        num_experts: E.
        num_sequences: B. The T tokens are B sequences of T / B tokens, one after the other.
        token_mask: [T] bool, False for tokens to leave out (padding).
        group: add up the counts of the ranks of this process group.

    Returns:
        [B, E] int64. Integer sums, so the result does not depend on the order of the additions.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: no experts, T is not a multiple of `num_sequences`, or a shape that does not fit.
    """
    function = "losses.expert_counts"
    _checks.is_tensor(function, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_rank(function, "topk_ids", topk_ids, "num_tokens, top_k")
    _checks.is_int(function, "num_experts", num_experts, low=1)
    num_tokens, top_k = topk_ids.shape
    check_sequences(function, num_tokens, num_sequences)
    token_mask = checked_mask(function, token_mask, num_tokens)
    # int64 before anything else: num_experts itself may not fit a narrower dtype, and scatter_add_ wants int64.
    ids = topk_ids.detach().long()
    is_expert = is_counted(ids, num_experts, token_mask)
    # Sentinels add their zero to expert 0; this keeps the output size free of the data.
    ids = ids.where(is_expert, torch.zeros_like(ids))
    slots = (num_sequences, (num_tokens // num_sequences) * top_k)
    counts = torch.zeros(num_sequences, num_experts, dtype=torch.int64, device=ids.device)
    return count_over_group(counts.scatter_add_(1, ids.reshape(slots), is_expert.long().reshape(slots)), group)
