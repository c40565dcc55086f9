"""Packs Python values into a kernel's parameter buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from emulator.arrays import place
from emulator.tensor_map import TensorMap

__all__ = ["Packed", "Parameter", "pack"]


class Parameter(NamedTuple):
    """A parameter as the PTX declares it."""

    name: str
    type: str  # "u64"; "b8" with more than one byte is a struct passed by value
    bytes: int
    offset: int

    @property
    def is_struct(self) -> bool:
        return self.type == "b8" and self.bytes > 1

    def __str__(self) -> str:
        return f".{self.type} {self.name}" + (f"[{self.bytes}]" if self.is_struct else "")


class Packed(NamedTuple):
    """A parameter buffer and the host memory that it leads to: (begin, end, writable, label) of each range."""

    data: bytes
    ranges: list[tuple[int, int, bool, str]]


_FLOATS = {"f16": "e", "f32": "f", "f64": "d"}


def _integer(value: int, size: int) -> bytes:
    bits = 8 * size
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise ValueError(f"{value} does not fit in {bits} bits")
    return (value & ((1 << bits) - 1)).to_bytes(size, "little")


def _numpy_scalar(value: np.generic, parameter: Parameter) -> bytes:
    is_integer = isinstance(value, np.integer | np.bool_)
    if is_integer and parameter.type in _FLOATS:
        raise TypeError(f"an {value.dtype} for a floating-point parameter")
    if value.itemsize == parameter.bytes:
        return value.tobytes()
    if is_integer and not parameter.is_struct:
        return _integer(int(value), parameter.bytes)
    raise TypeError(f"{value.dtype} has {value.itemsize} bytes, the parameter {parameter.bytes}")


def _scalar(value: Any, parameter: Parameter) -> bytes:
    if value is None:
        if parameter.bytes != 8:
            raise TypeError("None is a null pointer, and the parameter is none")
        return bytes(8)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if len(data) != parameter.bytes:
            raise ValueError(f"{len(data)} bytes for a parameter of {parameter.bytes}")
        return data
    if isinstance(value, np.generic):
        return _numpy_scalar(value, parameter)
    if parameter.is_struct:
        raise TypeError(f"a struct of {parameter.bytes} bytes wants bytes or a TensorMap, not {type(value).__name__}")
    if isinstance(value, bool | int | float) and parameter.type in _FLOATS:
        return struct.pack("<" + _FLOATS[parameter.type], value)
    if isinstance(value, bool | int):
        return _integer(int(value), parameter.bytes)
    raise TypeError(f"{type(value).__name__} for an integer or pointer parameter")


def pack(parameters: Sequence[Parameter], size: int, arguments: Sequence[Any], reachable: Iterable[Any] = ()) -> Packed:
    """The buffer of `size` bytes for these arguments. `reachable`: further arrays that the kernel finds pointers to."""
    if len(arguments) != len(parameters):
        wanted = ", ".join(map(str, parameters))
        raise TypeError(f"{len(arguments)} arguments for {len(parameters)} parameters: {wanted}")
    data = bytearray(size)
    ranges = []

    def touch(value: Any, label: str) -> int:
        where = place(value)
        assert where is not None
        ranges.append((where.begin, where.end, where.writable, label))
        return where.pointer

    for number, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True)):
        try:
            if isinstance(argument, TensorMap):
                touch(argument.array, f"the tensor of argument {number}")
                if parameter.is_struct:
                    value = _scalar(bytes(argument), parameter)
                else:
                    value = _integer(touch(argument.storage, f"argument {number}"), parameter.bytes)
            elif place(argument) is not None:
                if parameter.bytes != 8 or parameter.type in _FLOATS:
                    raise TypeError("an array for a parameter that is no pointer")
                value = _integer(touch(argument, f"argument {number}"), 8)
            else:
                value = _scalar(argument, parameter)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise type(error)(f"argument {number} ({parameter}): {error}") from None
        data[parameter.offset : parameter.offset + parameter.bytes] = value
    for value in reachable:
        if place(value) is None:
            raise TypeError(f"reachable wants arrays and tensors, not {type(value).__name__}")
        touch(value, "reachable memory")
    return Packed(bytes(data), ranges)
