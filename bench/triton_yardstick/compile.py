"""Triton kernels on the virtual GPU: compiled to PTX without a GPU, launched in Triton's calling convention."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch import Tensor

# Both are read when Triton is imported. The cache's key covers kernel, options and target; products and sums may fuse,
# as they do by default.
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"bench_triton_{os.getuid()}"))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.triton_yardstick import kernels

if TYPE_CHECKING:
    import emulator

_POINTERS: Final = {"bfloat16": "*bf16", "float32": "*fp32", "int32": "*i32"}


@dataclass(frozen=True)
class Compiled:
    """One specialisation: its PTX and what a launch needs to know."""

    name: str
    ptx: str
    shared_bytes: int
    num_threads: int


@cache
def _compile(
    kernel_name: str,
    arch: int,
    signature: tuple[tuple[str, str], ...],
    aligned: tuple[int, ...],
    constants: tuple[tuple[str, int], ...],
    num_warps: int,
    num_stages: int,
) -> Compiled:
    source = ASTSource(
        fn=getattr(kernels, kernel_name),
        signature=dict(signature),
        constexprs=dict(constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    metadata = result.metadata
    if metadata.num_ctas != 1 or metadata.global_scratch_size:
        raise RuntimeError(f"{kernel_name}: clusters and scratch memory are not provided")
    return Compiled(metadata.name, result.asm["ptx"], metadata.shared, 32 * metadata.num_warps)


Arguments = Mapping[str, Tensor | int | None]


def launch(
    gpu: emulator.Gpu,
    kernel_name: str,
    grid: int | tuple[int, ...],
    arguments: Arguments,
    constants: Mapping[str, int],
    *,
    num_warps: int = 4,
    num_stages: int = 3,
) -> None:
    """Launch `kernels.<kernel_name>`, specialised as Triton does: pointers and integers that 16 divides are marked.

    `arguments` are named and typed by their values; a pointer that the specialisation does not use may be None.
    """
    kernel = getattr(kernels, kernel_name)
    signature, aligned = [], []
    values: list[Any] = []
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature.append((name, "constexpr"))
            continue
        value = arguments[name]
        if isinstance(value, int):
            signature.append((name, "i32"))
            divisible = value % 16 == 0
            values.append(np.int32(value))
        else:
            kind = _POINTERS[str(value.dtype).removeprefix("torch.")] if value is not None else "*fp32"
            signature.append((name, kind))
            divisible = value is None or value.data_ptr() % 16 == 0
            values.append(value)
        if divisible:
            aligned.append(index)
    arch = 90 if gpu.chip.major == 9 else 80
    compiled = _compile(
        kernel_name,
        arch,
        tuple(signature),
        tuple(aligned),
        tuple(sorted(constants.items())),
        num_warps,
        num_stages,
    )
    module = gpu.load(compiled.ptx)
    # Two pointers to scratch memory come last.
    module[compiled.name](grid, compiled.num_threads, *values, None, None, shared_bytes=compiled.shared_bytes)
