"""Where the bytes of NumPy arrays and torch tensors lie."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

if TYPE_CHECKING:
    import torch

__all__ = ["Place", "is_tensor", "place", "torch_dtype"]


class Place(NamedTuple):
    """An array's data pointer and the bytes that its elements span."""

    pointer: int
    begin: int
    end: int
    writable: bool


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor. Does not import torch: who holds a tensor has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_dtype(value: Any) -> Any | None:
    """The value, if it is a torch.dtype."""
    torch = sys.modules.get("torch")
    return value if torch is not None and isinstance(value, torch.dtype) else None


def _tensor_place(tensor: torch.Tensor) -> Place:
    if tensor.device.type != "cpu":
        raise TypeError(f"want a CPU tensor, got one on {tensor.device}")
    pointer = tensor.data_ptr()
    if tensor.numel() == 0:
        return Place(pointer, pointer, pointer, True)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Place(pointer, pointer, pointer + (last + 1) * tensor.element_size(), True)


def place(value: Any) -> Place | None:
    """The place of an array or a tensor; None for anything else."""
    if isinstance(value, np.ndarray):
        pointer = value.ctypes.data
        if value.size == 0:
            return Place(pointer, pointer, pointer, value.flags.writeable)
        begin, end = byte_bounds(value)
        return Place(pointer, int(begin), int(end), value.flags.writeable)
    if is_tensor(value):
        return _tensor_place(value)
    return None
