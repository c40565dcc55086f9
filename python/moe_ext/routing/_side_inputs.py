"""Checks of what selections take beside the logits."""

import torch
from torch import Tensor


def checked_ids(
    owner: str,
    name: str,
    ids: Tensor | None,
    *,
    num_tokens: int | None = None,
    num_ids: int | None = None,
    token_mask: Tensor | None = None,
) -> Tensor:
    """`ids` as int64, after making sure that it was given and holds integers.

    With `num_ids`, values outside 0..num_ids-1 raise where looking at them costs no wait: on the CPU, outside of
    torch.compile. Tokens that `token_mask` leaves out may have any id.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: not given, not [num_tokens], or a value out of range.
    """
    if ids is None:
        raise ValueError(f"moe_ext.{owner}: {name} is needed, as a keyword of the call: {name}=[T] integers")
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"moe_ext.{owner}: {name} must be an int32 or int64 tensor, got {getattr(ids, 'dtype', type(ids))}"
        )
    if ids.dim() != 1 or (num_tokens is not None and ids.shape[0] != num_tokens):
        wanted = "[T]" if num_tokens is None else f"[T] = ({num_tokens},)"
        raise ValueError(f"moe_ext.{owner}: {name} must be {wanted}, got shape {tuple(ids.shape)}")
    ids = ids.long()
    if num_ids is not None and ids.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = (ids < 0) | (ids >= num_ids)
        if token_mask is not None:
            outside = outside & token_mask.reshape(ids.shape)
        if bool(outside.any()):
            raise ValueError(f"moe_ext.{owner}: {name} must be in 0..{num_ids - 1}, got {int(ids[outside][0])}")
    return ids
