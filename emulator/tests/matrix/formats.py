"""Matrix elements as bits, with torch's conversions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

__all__ = ["BYTES", "Make", "decode", "encode", "encode_nearest", "grid_values", "is_integer", "random_values"]

Make = Callable[[np.random.Generator, tuple[int, ...], str], np.ndarray]  # values of a shape and type

_TORCH = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
_NUMPY = {"f32": np.float32, "f64": np.float64, "s32": np.int32, "s8": np.int8, "u8": np.uint8}
BYTES = {"f16": 2, "bf16": 2, "e4m3": 1, "e5m2": 1, "tf32": 4, "f32": 4, "f64": 8, "s32": 4, "s8": 1, "u8": 1}
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def is_integer(name: str) -> bool:
    """Whether it is a type of whole numbers."""
    return name in ("s8", "u8", "s32")


def encode(values: np.ndarray, name: str) -> np.ndarray:
    """The bits of the values, rounded to nearest where need be."""
    bits = _BITS[BYTES[name]]
    if name in _TORCH:
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(_TORCH[name])
        return tensor.view(torch.uint8).numpy().view(bits).reshape(values.shape)
    if name == "tf32":
        raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return (raw + 0xFFF + (raw >> 13 & 1)) & np.uint32(0xFFFFE000)
    return np.ascontiguousarray(values.astype(_NUMPY[name])).view(bits)


def encode_nearest(values: np.ndarray, name: str) -> np.ndarray:
    """The bits of float64 values in f32 or f16, rounded once."""
    dtype = {"f32": np.float32, "f16": np.float16}[name]
    return values.astype(dtype).view(_BITS[BYTES[name]])


def decode(bits: np.ndarray, name: str) -> np.ndarray:
    """float64 or int64 values of the bits."""
    bits = np.ascontiguousarray(bits)
    if name in _TORCH:
        tensor = torch.from_numpy(bits.view(np.uint8).copy()).view(_TORCH[name])
        return tensor.to(torch.float64).numpy().reshape(bits.shape)
    if name == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    values = bits.view(_NUMPY[name])
    return values.astype(np.int64 if is_integer(name) else np.float64)


def grid_values(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Values whose products and sums are exact in every accumulator: small whole numbers or quarters."""
    if name == "u8":
        return rng.integers(0, 256, shape).astype(np.float64)
    if name == "s8":
        return rng.integers(-128, 128, shape).astype(np.float64)
    if name == "s32":
        return rng.integers(-(2**20), 2**20, shape).astype(np.float64)
    if name in ("e4m3", "e5m2"):
        return rng.integers(-4, 5, shape) / 2
    return rng.integers(-8, 9, shape) / 4


def random_values(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Normal values, rounded to the type."""
    return decode(encode(rng.normal(size=shape), name), name).reshape(shape)
