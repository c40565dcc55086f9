"""Which lane holds which element of a matrix fragment, as the tables of the PTX ISA say.

Each function gives (row, column) of element `i` in lane `lane`; `i` counts through the lane's registers, several to a
register of 32 bits where elements are narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emulator.tests.matrix.formats import BYTES

__all__ = ["Fragment", "accumulator", "mma_fragments", "pack", "unpack", "wgmma_a", "wgmma_d"]

LANES = 32
Where = Callable[[int, int], tuple[int, int]]  # (lane, i) to (row, column)


class Fragment(NamedTuple):
    """One operand: how many elements a lane holds, and where they are."""

    per_lane: int
    where: Where


def _group(lane: int) -> int:
    return lane >> 2


def _thread(lane: int) -> int:
    return lane & 3


def _a_16x16(lane: int, i: int) -> tuple[int, int]:
    row = _group(lane) if 0 <= i < 2 or 4 <= i < 6 else _group(lane) + 8
    return row, _thread(lane) * 2 + (i & 1) + (8 if i >= 4 else 0)


def _b_16x8(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) * 2 + (i & 1) + (8 if i >= 2 else 0), _group(lane)


def _a_16x8(lane: int, i: int) -> tuple[int, int]:
    return _group(lane) + (8 if i >= 2 else 0), _thread(lane) * 2 + (i & 1)


def _b_8x8(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) * 2 + i, _group(lane)


def _a_words(lane: int, i: int) -> tuple[int, int]:
    return _group(lane) + (8 if i in (1, 3) else 0), _thread(lane) + (4 if i >= 2 else 0)


def _b_words(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) + 4 * i, _group(lane)


def _a_16x32(lane: int, i: int) -> tuple[int, int]:
    row = _group(lane) if 0 <= i < 4 or 8 <= i < 12 else _group(lane) + 8
    return row, _thread(lane) * 4 + (i & 3) + (16 if i >= 8 else 0)


def _b_32x8(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) * 4 + (i & 3) + (16 if i >= 4 else 0), _group(lane)


def _a_16x16_bytes(lane: int, i: int) -> tuple[int, int]:
    return _group(lane) + (8 if i >= 4 else 0), _thread(lane) * 4 + (i & 3)


def _b_16x8_bytes(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) * 4 + i, _group(lane)


def _a_8x16_bytes(lane: int, i: int) -> tuple[int, int]:
    return _group(lane), _thread(lane) * 4 + i


def _a_double(lane: int, i: int) -> tuple[int, int]:
    if i % 2 == 0:
        return _group(lane), i * 2 + _thread(lane)
    return _group(lane) + 8, i * 2 - 2 + _thread(lane)


def _b_double(lane: int, i: int) -> tuple[int, int]:
    return _thread(lane) + i * 4, _group(lane)


def accumulator(rows: int) -> Fragment:
    """C and D of mma: 16×8 or 8×8."""

    def where(lane: int, i: int) -> tuple[int, int]:
        return _group(lane) + (8 if i >= 2 else 0), _thread(lane) * 2 + (i & 1)

    return Fragment(rows * 8 // LANES, where)


def mma_fragments(m: int, k: int, element: str) -> tuple[Fragment, Fragment]:
    """A and B of mma.m{m}n8k{k}."""
    table: dict[tuple[int, int, int], tuple[Where, Where]] = {
        (16, 16, 2): (_a_16x16, _b_16x8),
        (16, 8, 2): (_a_16x8, _b_8x8),
        (16, 4, 4): (_a_words, _b_words),
        (16, 8, 4): (_a_words, _b_words),
        (16, 32, 1): (_a_16x32, _b_32x8),
        (16, 16, 1): (_a_16x16_bytes, _b_16x8_bytes),
        (8, 16, 1): (_a_8x16_bytes, _b_16x8_bytes),
        (8, 4, 8): (lambda lane, i: (_group(lane), _thread(lane)), _b_double),
        (16, 4, 8): (_a_double, _b_double),
        (16, 8, 8): (_a_double, _b_double),
        (16, 16, 8): (_a_double, _b_double),
    }
    a, b = table[m, k, BYTES[element]]
    return Fragment(m * k // LANES, a), Fragment(8 * k // LANES, b)


def wgmma_a(element: str) -> Fragment:
    """A of wgmma in registers: the 16 rows of one warp."""
    k = 32 // BYTES[element]
    return mma_fragments(16, k, element)[0]


def wgmma_d(n: int) -> Fragment:
    """D of wgmma: the 16 rows of one warp."""

    def where(lane: int, i: int) -> tuple[int, int]:
        return _group(lane) + 8 * (i // 2 % 2), 8 * (i // 4) + _thread(lane) * 2 + (i & 1)

    return Fragment(16 * n // LANES, where)


def _places(fragment: Fragment) -> tuple[np.ndarray, np.ndarray]:
    where = np.array([[fragment.where(lane, i) for i in range(fragment.per_lane)] for lane in range(LANES)])
    return where[..., 0], where[..., 1]


def pack(bits: np.ndarray, fragment: Fragment) -> np.ndarray:
    """A batch of matrices (…, rows, columns) to registers (…, register, lane) of 32 bits (64 for f64)."""
    rows, columns = _places(fragment)
    elements = np.ascontiguousarray(bits[..., rows, columns])  # …, lane, i
    words = elements.view(np.uint64 if bits.itemsize == 8 else np.uint32)
    return np.ascontiguousarray(np.swapaxes(words, -1, -2))


def unpack(registers: np.ndarray, fragment: Fragment, shape: tuple[int, int], bits: type) -> np.ndarray:
    """The way back."""
    elements: np.ndarray = np.ascontiguousarray(np.swapaxes(registers, -1, -2)).view(bits)
    rows, columns = _places(fragment)
    matrix = np.zeros((*registers.shape[:-2], *shape), bits)
    matrix[..., rows, columns] = elements
    return matrix
