"""soft_dispatch and soft_combine: Soft MoE, Puigcerver et al. 2023 (arXiv:2308.00951), equations 1 and 3."""

import torch
from torch import Tensor

from moe_ext.reference.precision import compute_dtype


def soft_dispatch(x: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """``x [B, m, d]``, ``logits [B, m, s]`` -> slots ``[B, s, d]``: means of tokens, weighed by a softmax over them.

    ``token_mask [B, m]`` is False for tokens that no slot sees.
    """
    weights = logits.to(compute_dtype(logits.dtype))
    if token_mask is not None:
        weights = weights.masked_fill(~token_mask.unsqueeze(2), float("-inf"))
    weights = weights.softmax(dim=1)
    if token_mask is not None:
        weights = weights.masked_fill(~token_mask.unsqueeze(2), 0.0)
    return torch.einsum("bms,bmd->bsd", weights, x.to(weights.dtype)).to(x.dtype)


def soft_combine(slot_outputs: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """``slot_outputs [B, s, d]``, ``logits [B, m, s]`` -> ``[B, m, d]``: means of the slots, weighed by a softmax.

    The output is zero where ``token_mask [B, m]`` is False.
    """
    weights = logits.to(compute_dtype(logits.dtype)).softmax(dim=2)
    y = torch.einsum("bms,bsd->bmd", weights, slot_outputs.to(weights.dtype)).to(slot_outputs.dtype)
    return y if token_mask is None else y.masked_fill(~token_mask.unsqueeze(2), 0.0)
