"""Bit patterns of the narrow floating-point formats as NumPy arrays, and inputs on which sums of products are exact.

NumPy has no bfloat16 and no fp8, so kernels get arrays of raw 16- or 8-bit patterns. The conversions are PyTorch's.
"""

from __future__ import annotations

import numpy as np
import torch

_TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}
_RAW = {
    "fp16": np.uint16,
    "bf16": np.uint16,
    "fp8e4nv": np.uint8,
    "fp8e5": np.uint8,
    "fp32": np.float32,
    "fp64": np.float64,
    "int8": np.int8,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
}
# Largest relative error of one rounding to nearest.
HALF_ULP = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "fp8e4nv": 2.0**-4, "fp8e5": 2.0**-3}


def raw_dtype(name: str) -> type:
    """NumPy's dtype of an array that holds the patterns of Triton's type `name`."""
    return _RAW[name]


def encode(values: np.ndarray, name: str) -> np.ndarray:
    """Round `values` to the format, ties to even, and return the patterns (or the numbers where NumPy has the type)."""
    if name not in _TORCH:
        return np.ascontiguousarray(values.astype(_RAW[name]))
    rounded = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(_TORCH[name])
    raw = torch.uint16 if rounded.element_size() == 2 else torch.uint8
    return rounded.view(raw).numpy().copy()


def decode(patterns: np.ndarray, name: str) -> np.ndarray:
    """The values of `patterns` as float64 (integers stay integers)."""
    patterns = np.array(patterns)
    if name in _TORCH:
        return torch.from_numpy(patterns).view(_TORCH[name]).to(torch.float64).numpy()
    return patterns.astype(np.float64) if patterns.dtype.kind == "f" else patterns


def grid(rng: np.random.Generator, shape: tuple[int, ...], name: str = "bf16") -> np.ndarray:
    """Random multiples of 1/4 in [-2, 2] as float64: every format holds them, and fp32 holds sums of their products.

    A product is a multiple of 1/16 of at most 4, so 2^18 of them add up without rounding in fp32, in any order.
    """
    if name in ("i8", "int8"):
        return rng.integers(-8, 9, shape).astype(np.float64)
    return rng.integers(-8, 9, shape) / 4.0


def assert_within_ulp(actual: np.ndarray, expected: np.ndarray, ulp: float, *, absolute: float = 0.0) -> None:
    """Each element within `ulp` units in the last place (of `actual`'s type) of the exact value, or `absolute`.

    Half a unit is the least that any rounding can promise, so it comes on top.
    """
    dtype = actual.dtype.type
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = expected.astype(dtype)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(actual.astype(expected.dtype) - expected)
        same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
        good = same | (error <= np.maximum((ulp + 0.5) * unit, absolute))
    if not good.all():
        worst = np.argmax(np.where(good, -1, np.nan_to_num(error / unit, nan=np.inf, posinf=np.inf)))
        raise AssertionError(
            f"{np.count_nonzero(~good)} of {good.size} elements are off by more than {ulp} ulp; element {worst} is "
            f"{actual.flat[worst]!r}, want {expected.flat[worst]!r} ({error.flat[worst] / unit.flat[worst]:.2f} ulp)"
        )
