"""Compile Triton kernels to PTX without a GPU, and launch them on the virtual GPU through Triton's calling convention.

Triton passes its arguments in the order of the signature, without the constexprs. A tensor descriptor becomes a
128-byte tensor map by value (where Triton decided to use the TMA unit) or a plain pointer, then its shape as 32-bit
and its strides as 64-bit integers. Two pointers to scratch memory come last.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Triton reads it when it compiles; its own cache key covers the source of the kernel, the options and the target.
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"vgpu_oracles_{os.getuid()}" / "triton"))
# What a later release of Triton changes the default of; either is right.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

SWIZZLES = ("none", "32B", "64B", "128B")
# What raw patterns stand for; other arrays have the element type that NumPy says.
MAP_TYPES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass
class Descriptor:
    """A tensor descriptor that the host makes: the array and the dtype that the kernel sees it as."""

    array: Any  # in emulator memory; the last dimension is contiguous
    dtype: str = ""  # "bf16", …: what a NumPy array of raw 16- or 8-bit patterns stands for
    padding: str = "zero"


@dataclass
class Compiled:
    """The PTX of one specialisation and what a launch of it needs to know."""

    name: str
    ptx: str
    parameters: list[tuple[str, str]]  # name and Triton type, without the constexprs
    shared_bytes: int
    num_threads: int
    num_ctas: int
    scratch_bytes: int  # of global scratch memory per block
    descriptors: list[dict[str, Any]]  # how Triton wants each tensor map to be encoded; empty below sm_90

    def arguments(self, gpu: Any, blocks: int, values: list[Any]) -> list[Any]:
        """The flat list of a launch's arguments, scratch memory included."""
        assert len(values) == len(self.parameters), f"{self.name} takes {[name for name, _ in self.parameters]}"
        flat: list[Any] = []
        maps = iter(self.descriptors)
        for (_, kind), value in zip(self.parameters, values, strict=True):
            if isinstance(value, Descriptor):
                flat += self._descriptor(value, next(maps) if self.descriptors else None)
            else:
                flat.append(_scalar(kind, value))
        scratch = gpu.empty((self.scratch_bytes * blocks * self.num_ctas,), np.uint8) if self.scratch_bytes else None
        return [*flat, scratch, None]

    def launch(self, gpu: Any, grid: int | tuple[int, ...], *values: Any, programmatic: bool = False) -> Any:
        """Run the kernel on `gpu` over `grid` programs."""
        grid = (grid,) if isinstance(grid, int) else grid
        # A program is a cluster of num_ctas blocks along x.
        blocks = (grid[0] * self.num_ctas, *grid[1:])
        module = gpu.load(self.ptx)
        return module[self.name](
            blocks,
            self.num_threads,
            *self.arguments(gpu, int(np.prod(grid)), list(values)),
            shared_bytes=self.shared_bytes,
            cluster=self.num_ctas if self.num_ctas > 1 else None,
            programmatic=programmatic,
        )

    @staticmethod
    def _descriptor(value: Descriptor, layout: dict[str, Any] | None) -> list[Any]:
        array = value.array
        shape = [np.int32(extent) for extent in array.shape]
        strides = [np.int64(step // array.itemsize) for step in array.strides]
        if layout is None:
            # Without the TMA unit: pointer, shape, strides, padding with NaN, rounding to tf32, then shape and strides.
            flags = [np.int8(value.padding == "nan"), np.int8(0)]
            return [array, *(np.int64(extent) for extent in shape), *strides, *flags, *shape, *strides]
        import emulator

        tensor_map = emulator.TensorMap(
            array,
            tuple(layout["block_size"]),
            swizzle=SWIZZLES[layout["swizzle"]],
            oob=value.padding,
            dtype=MAP_TYPES.get(value.dtype),
        )
        return [tensor_map, *shape, *strides]


def _scalar(kind: str, value: Any) -> Any:
    if kind.startswith("*") or value is None:
        return value
    types = {"i1": np.int8, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u32": np.uint32}
    types |= {"u64": np.uint64, "fp32": np.float32, "fp64": np.float64}
    return types[kind](value)


def compile_kernel(
    kernel: Any,
    arch: int,
    parameters: dict[str, str],
    *,
    aligned: bool = True,
    multiples_of_16: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
    **constants: Any,
) -> Compiled:
    """Compile `kernel` for sm_80 or sm_90a (`arch` 80 or 90).

    `parameters` maps each run-time parameter to its Triton type ("*bf16", "i32", "tensordesc<bf16[64,64]>", …). With
    `aligned`, Triton may assume that pointers are multiples of 16 bytes, as it does for a PyTorch allocation; so are
    the integers named in `multiples_of_16`.
    """
    signature = {name: "constexpr" if name in constants else parameters[name] for name in kernel.arg_names}
    attributes = {}
    for index, (name, kind) in enumerate(signature.items()):
        if (aligned and kind.startswith("*")) or name in multiples_of_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
    make_source = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = make_source(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options or {})
    metadata = result.metadata
    return Compiled(
        name=metadata.name,
        ptx=result.asm["ptx"],
        parameters=[(name, kind) for name, kind in signature.items() if kind != "constexpr"],
        shared_bytes=metadata.shared,
        num_threads=32 * metadata.num_warps,
        num_ctas=metadata.num_ctas,
        scratch_bytes=metadata.global_scratch_size,
        descriptors=[dict(entry) for entry in getattr(metadata, "tensordesc_meta", None) or []],
    )
