"""Operands of wgmma in shared memory, laid out as the PTX ISA's canonical layouts say, and their descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SPANS", "Layout", "descriptor", "place"]

SPANS = {"none": 16, "32B": 32, "64B": 64, "128B": 128}
_MODES = {"none": 0, "128B": 1, "64B": 2, "32B": 3}


@dataclass(frozen=True)
class Layout:
    """How an operand of `lines` rows of A (or columns of B) by `k` elements lies; offsets in bytes."""

    swizzle: str
    k_major: bool
    element: int  # bytes
    start: int
    leading: int
    stride: int

    def address(self, line: int, k: int) -> int:
        """Of one element, in units and terms of the canonical layouts: T elements are 16 bytes."""
        t = 16 // self.element
        width = SPANS[self.swizzle] // 16  # T in a swizzled row
        if self.k_major:
            # Swizzle o ((8, m), (T, 2k)) : ((width T, SBO), (1, T)); without swizzling the second T is LBO away.
            offset = line % 8 * width * 16 + line // 8 * self.stride + k % t * self.element
            offset += k // t * (self.leading if self.swizzle == "none" else 16)
        elif self.swizzle == "none":
            # ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
            offset = line % t * self.element + line // t * self.stride + k % 8 * 16 + k // 8 * self.leading
        else:
            # ((T, width, m), (8, k)) : ((1, T, LBO), (width T, SBO))
            in_row, row = divmod(line, t)[::-1]
            offset = in_row * self.element + row % width * 16 + row // width * self.leading
            offset += k % 8 * width * 16 + k // 8 * self.stride
        return self._swizzled(self.start + offset)

    def _swizzled(self, address: int) -> int:
        # Swizzle<B, 4, 3> on byte addresses: the B bits from bit 7 are added, without carry, to those from bit 4.
        bits = {"none": 0, "32B": 1, "64B": 2, "128B": 3}[self.swizzle]
        return address ^ (address >> 7 & ((1 << bits) - 1)) << 4


def place(image: np.ndarray, bits: np.ndarray, layout: Layout, first_k: int = 0) -> None:
    """Writes a matrix (lines, k) into an image of shared memory (bytes)."""
    for line in range(bits.shape[0]):
        for k in range(bits.shape[1]):
            at = layout.address(line, first_k + k)
            image[at : at + layout.element] = np.frombuffer(bits[line, k].tobytes(), np.uint8)


def descriptor(layout: Layout, *, advance: int = 0, base_offset: int = 0) -> int:
    """The 64 bits; `advance` bytes are added to the start."""

    def field(offset: int) -> int:
        return (offset & 0x3FFFF) >> 4

    return (
        field(layout.start + advance)
        | field(layout.leading) << 16
        | field(layout.stride) << 32
        | base_offset << 49
        | _MODES[layout.swizzle] << 62
    )
