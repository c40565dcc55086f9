"""Argument checks shared by the public functions.

Each names the function, the argument, what was wanted and what came: TypeError for a wrong type or dtype, ValueError
for a wrong shape, device or value. They look at metadata only, so they cost no synchronisation, and under
``torch.compile`` sizes may be symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autocast

DATA_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ID_DTYPES = (torch.int32, torch.int64)


def is_tensor(function: str, name: str, value: Any, dtypes: Sequence[torch.dtype]) -> None:
    """``value`` is a strided tensor of one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"moe_ext.{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"moe_ext.{function}: {name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"moe_ext.{function}: {name} must be {wanted}, got {value.dtype}")


def has_rank(function: str, name: str, tensor: Tensor, axes: str) -> None:
    """``tensor`` has as many dimensions as ``axes`` names, for example "num_tokens, hidden_size"."""
    if tensor.ndim != axes.count(",") + 1:
        raise ValueError(f"moe_ext.{function}: {name} must be [{axes}], got shape {tuple(tensor.shape)}")


def has_shape(function: str, name: str, tensor: Tensor, axes: str, sizes: Sequence[int]) -> None:
    """``tensor`` is of shape ``sizes``, whose dimensions ``axes`` names."""
    has_rank(function, name, tensor, axes)
    for got, wanted in zip(tensor.shape, sizes, strict=True):
        if got != wanted:
            raise ValueError(
                f"moe_ext.{function}: {name} must be [{axes}] = {tuple(sizes)}, got shape {tuple(tensor.shape)}"
            )


def same_device(function: str, name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Both tensors live on one device."""
    if tensor.device != reference.device:
        raise ValueError(
            f"moe_ext.{function}: {name} must be on {reference.device} like {reference_name}, got {tensor.device}"
        )


def same_dtype(function: str, name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Both tensors have one dtype, after what autocast is about to do to them."""
    if _autocast.lowered_dtype(tensor) != _autocast.lowered_dtype(reference):
        raise TypeError(
            f"moe_ext.{function}: {name} must be {reference.dtype} like {reference_name}, got {tensor.dtype}"
        )


def is_int(function: str, name: str, value: Any, *, low: int, high: int | None = None, why: str = "") -> None:
    """``value`` is an integer in ``low..high``; ``why`` explains the upper bound."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"moe_ext.{function}: {name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"moe_ext.{function}: {name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"moe_ext.{function}: {name} must be at most {high}{why}, got {value}")


def is_bool(function: str, name: str, value: Any) -> None:
    """``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"moe_ext.{function}: {name} must be a bool, got {type(value).__name__}")


def is_number(function: str, name: str, value: Any, *, above: float | None = None, low: float | None = None) -> None:
    """``value`` is a real number, not NaN: finite, or greater than ``above``, or at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"moe_ext.{function}: {name} must be a number, got {type(value).__name__}")
    if above is not None:
        if not value > above:
            raise ValueError(f"moe_ext.{function}: {name} must be greater than {above}, got {value}")
    elif not -math.inf < value < math.inf:
        raise ValueError(f"moe_ext.{function}: {name} must be finite, got {value}")
    if low is not None and value < low:
        raise ValueError(f"moe_ext.{function}: {name} must be at least {low}, got {value}")


def is_choice(function: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """``value`` is one of the strings in ``choices``."""
    if not isinstance(value, str):
        raise TypeError(f"moe_ext.{function}: {name} must be a string, got {type(value).__name__}")
    if value not in choices:
        wanted = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f'moe_ext.{function}: {name} must be one of {wanted}, got "{value}"')


def is_permutation(function: str, value: Any) -> None:
    """``value`` is what :func:`moe_ext.permute` returns: three int32 tensors that agree on the number of rows."""
    if not isinstance(value, tuple) or len(value) != 3:
        raise TypeError(f"moe_ext.{function}: perm must be a moe_ext.Permutation, got {type(value).__name__}")
    expert_offsets, row_to_slot, slot_to_row = value
    is_offsets(function, "perm.expert_offsets", expert_offsets)
    is_tensor(function, "perm.row_to_slot", row_to_slot, (torch.int32,))
    is_tensor(function, "perm.slot_to_row", slot_to_row, (torch.int32,))
    has_rank(function, "perm.slot_to_row", slot_to_row, "num_tokens, top_k")
    num_rows = slot_to_row.shape[0] * slot_to_row.shape[1]
    has_shape(function, "perm.row_to_slot", row_to_slot, "num_tokens * top_k", (num_rows,))
    same_device(function, "perm.row_to_slot", row_to_slot, "perm.expert_offsets", expert_offsets)
    same_device(function, "perm.slot_to_row", slot_to_row, "perm.expert_offsets", expert_offsets)


def is_offsets(function: str, name: str, value: Any) -> None:
    """``value`` can be an ``expert_offsets``: int32 and one-dimensional, for at least one expert."""
    is_tensor(function, name, value, (torch.int32,))
    has_rank(function, name, value, "num_experts + 1")
    if value.shape[0] < 2:
        raise ValueError(f"moe_ext.{function}: {name} must be [num_experts + 1], got shape {tuple(value.shape)}")


def routing_weights(function: str, topk_weights: Any, data: Tensor) -> Tensor:
    """``topk_weights`` in the dtype that the kernels take: float32, and float64 where ``data`` is float64."""
    is_tensor(function, "topk_weights", topk_weights, DATA_DTYPES)
    return topk_weights.to(torch.float64 if data.dtype == torch.float64 else torch.float32)
