"""What tensor copies do, in NumPy, after the CUDA driver API's and PTX's description of tensor maps in tile mode.

Everything is in NumPy's order: the innermost dimension last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SPANS = {"none": 0, "32B": 32, "64B": 64, "128B": 128}


def swizzle(address: int, mode: str) -> int:
    """Where the byte at this shared address lies: 16-byte chunks trade places within the span, by the line of 128
    bytes that they are in."""
    chunks = SPANS[mode] // 16
    if chunks == 0:
        return address
    line, chunk, rest = address // 128, address // 16, address % 16
    return (chunk ^ (line % chunks)) * 16 + rest


@dataclass
class Box:
    """A box of an array at some coordinates."""

    dims: Sequence[int]
    box: Sequence[int]
    start: Sequence[int]
    element_strides: Sequence[int]

    def counts(self) -> list[int]:
        """Elements in each dimension. The innermost has no element stride."""
        outer = [-(-b // s) for b, s in zip(self.box[:-1], self.element_strides[:-1], strict=True)]
        return [*outer, self.box[-1]]

    def elements(self) -> Iterator[tuple[int, tuple[int, ...] | None]]:
        """Number in the box, and index in the array or None outside of it."""
        steps = [*self.element_strides[:-1], 1]
        for number, k in enumerate(product(*map(range, self.counts()))):
            index = tuple(s + i * step for s, i, step in zip(self.start, k, steps, strict=True))
            inside = all(0 <= i < n for i, n in zip(index, self.dims, strict=True))
            yield number, index if inside else None


def loaded(array: np.ndarray, box: Box, mode: str, base: int, fill: bytes) -> np.ndarray:
    """The bytes of shared memory from `base` on, after a load."""
    size = array.itemsize
    shared = np.zeros(int(np.prod(box.counts())) * size, np.uint8)
    for number, index in box.elements():
        value = fill if index is None else array[index].tobytes()
        at = swizzle(base + number * size, mode) - base
        shared[at : at + size] = np.frombuffer(value, np.uint8)
    return shared


def stored(
    array: np.ndarray, box: Box, mode: str, base: int, shared: np.ndarray
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Index in the array and offset in shared memory of each element that a store writes."""
    for number, index in box.elements():
        if index is not None:
            yield index, swizzle(base + number * array.itemsize, mode) - base
