"""Python integers as registers hold them, and edge values of each type."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from emulator.tests.instructions.ptx_template import Case, bits_of, dtype_of


def value(bits: int, type_name: str) -> int:
    """The number that some bits mean."""
    width = bits_of(type_name)
    bits = int(bits) & ((1 << width) - 1)
    return bits - (1 << width) if type_name[0] == "s" and bits >> (width - 1) else bits


def limits(type_name: str) -> tuple[int, int]:
    """The least and the greatest number."""
    width = bits_of(type_name)
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if type_name[0] == "s" else (0, (1 << width) - 1)


def clamp(x: int, type_name: str) -> int:
    """The nearest number that the type has."""
    low, high = limits(type_name)
    return max(low, min(high, x))


def interesting(width: int, seed: int = 0, more: int = 6) -> list[int]:
    """Bits: small numbers, those around each power of two that matters, all ones, patterns, random numbers."""
    top = 1 << width
    found = [0, 1, 2, 3, 5, 7, 31, 32, 33, top - 1, top - 2, top - 7, top // 2, top // 2 - 1, top // 2 + 1]
    found += [0x5555555555555555, 0x0123456789ABCDEF, 0xFEDCBA9876543210, 0xFF00, 0x8000, 0x7FFF, 0xFFFF, 0x80000000]
    random = np.random.default_rng(seed)
    found += [int(random.integers(0, 1 << 63)) * 2 + int(random.integers(0, 2)) for _ in range(more)]
    found += [int(random.integers(0, 1 << 63)) >> int(random.integers(0, 63)) for _ in range(more)]
    return sorted({x % top for x in found})


def combinations(*pools: Sequence[int], most: int = 1200, seed: int = 3) -> list[tuple[int, ...]]:
    """All combinations, or a random choice of them."""
    everything = list(itertools.product(*pools))
    if len(everything) <= most:
        return everything
    chosen = np.random.default_rng(seed).permutation(len(everything))[:most]
    return [everything[k] for k in chosen]


def check(case: Case, rows: list[tuple[int, ...]], wanted: Callable[..., int]) -> None:
    """Compares the results for all rows of source bits with wanted(*numbers), taken modulo the result's width."""
    columns = [np.array(column, dtype_of(t)) for column, t in zip(zip(*rows, strict=True), case.sources, strict=True)]
    got = case(*columns)
    width = bits_of(case.result)
    numbers = [[value(x, t) for x in column] for column, t in zip(columns, case.sources, strict=True)]
    for row, source, result in zip(zip(*numbers, strict=True), rows, got, strict=True):
        expected = wanted(*row) & ((1 << width) - 1)
        assert int(result) == expected, (
            f"{case.text} of {[hex(x) for x in source]}: got {result:#x}, want {expected:#x}"
        )
