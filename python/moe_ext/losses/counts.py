"""How many slots each expert got: the one count that losses, metrics and bias updates share."""

import torch
from torch import Tensor


def expert_counts(topk_ids: Tensor, num_experts: int, num_sequences: int = 1) -> Tensor:
    """Count the slots assigned to each expert, per sequence.

    Args:
        topk_ids: [T, K] int32 or int64. Ids below 0 or at and above `num_experts` are sentinels and not counted.
        num_experts: E.
        num_sequences: B. The T tokens are B sequences of T / B tokens, one after the other.

    Returns:
        [B, E] int64. Integer sums, so the result does not depend on the order of the additions.

    Raises:
        ValueError: T is not a multiple of `num_sequences`.
    """
    num_tokens, top_k = topk_ids.shape
    if num_sequences < 1 or num_tokens % num_sequences:
        raise ValueError(f"expert_counts: {num_tokens} tokens do not make {num_sequences} sequences of equal length")
    # int64 before anything else: num_experts itself may not fit a narrower dtype, and scatter_add_ wants int64.
    ids = topk_ids.detach().long().reshape(num_sequences, (num_tokens // num_sequences) * top_k)
    is_expert = (ids >= 0) & (ids < num_experts)
    # Sentinels add their zero to expert 0; this keeps the output size free of the data.
    counts = torch.zeros(num_sequences, num_experts, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(1, ids.where(is_expert, torch.zeros_like(ids)), is_expert.long())
