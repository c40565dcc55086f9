"""Tensor maps for the tensor copies of Hopper and later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emulator import _core
from emulator.arrays import is_tensor, place

__all__ = ["TensorMap"]

_TYPES = {
    "uint8": 0,
    "int8": 0,
    "bool": 0,
    "float8_e4m3fn": 0,
    "float8_e5m2": 0,
    "float8_e8m0fnu": 0,
    "uint16": 1,
    "int16": 1,
    "uint32": 2,
    "int32": 3,
    "uint64": 4,
    "int64": 5,
    "float16": 6,
    "float32": 7,
    "float64": 8,
    "bfloat16": 9,
    "float32_ftz": 10,
    "tfloat32": 11,
    "tfloat32_ftz": 12,
}
_SIZES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}
_SWIZZLES = {
    "none": 0,
    "32B": 1,
    "64B": 2,
    "128B": 3,
    "128B_atom_32B": 4,
    "128B_atom_32B_flip_8B": 5,
    "128B_atom_64B": 6,
}
_INTERLEAVES = {"none": 0, "16B": 1, "32B": 2}
_FILLS = {"zero": 0, "nan": 1}


def _choice(table: dict[str, int], name: str, what: str) -> int:
    if name not in table:
        raise ValueError(f"{what} is {name!r}, want one of {', '.join(table)}")
    return table[name]


class TensorMap:
    """The 128 bytes that describe how tensor copies walk an array.

    `dims`, `strides` (in bytes), `box` and `element_strides` are in NumPy's order, innermost last. The innermost
    dimension has no stride in a tensor map, so its elements must be contiguous.
    """

    def __init__(
        self,
        array: Any,
        box: Sequence[int],
        *,
        swizzle: str = "none",
        strides: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        interleave: str = "none",
        oob: str = "zero",
        element_strides: Sequence[int] | None = None,
        dtype: str | None = None,
    ) -> None:
        where = place(array)
        if where is None:
            raise TypeError(f"want an array or a tensor, got {type(array).__name__}")
        name = dtype if dtype is not None else str(array.dtype).removeprefix("torch.")
        kind = _choice(_TYPES, name, "dtype")
        dims = list(array.shape) if dims is None else list(dims)
        if strides is None:
            strides = self._strides(array, dims, _SIZES[kind])
        strides = list(strides)
        if len(strides) == len(dims):
            if strides and strides[-1] != _SIZES[kind]:
                raise ValueError(f"neighbours in the innermost dimension are {strides[-1]} bytes apart")
            strides = strides[:-1]
        steps = [1] * len(dims) if element_strides is None else list(element_strides)
        encoded = _core.encode_tensor_map(
            kind,
            where.pointer,
            dims[::-1],
            strides[::-1],
            list(box)[::-1],
            steps[::-1],
            _choice(_INTERLEAVES, interleave, "interleave"),
            _choice(_SWIZZLES, swizzle, "swizzle"),
            _choice(_FILLS, oob, "oob"),
        )
        self.array = array  # kept alive: kernels read it through the map
        raw = np.empty(128 + 64, np.uint8)
        start = -raw.ctypes.data % 64
        #: The map itself, 64-byte aligned, for kernels that take a pointer to it.
        self.storage = raw[start : start + 128]
        self.storage[:] = np.frombuffer(encoded, np.uint8)

    @staticmethod
    def _strides(array: Any, dims: list[int], size: int) -> list[int]:
        if len(dims) == array.ndim:
            if is_tensor(array):
                return [stride * size for stride in array.stride()]
            return list(array.strides)
        # Other dimensions than the array's own: as if it were contiguous.
        strides = [size] * len(dims)
        for i in range(len(dims) - 2, -1, -1):
            strides[i] = strides[i + 1] * dims[i + 1]
        return strides

    def __bytes__(self) -> bytes:
        return self.storage.tobytes()
