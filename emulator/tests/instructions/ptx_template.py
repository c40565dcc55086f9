"""Test kernels made of one instruction: each thread loads the sources, executes it, stores the result.

A test file describes its instructions on a Sheet when it is imported; all of them become one PTX text, which the
emulator loads, and ptxas checks, once. Values are passed as their bits, in unsigned arrays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import emulator

BLOCK = 128
# Lanes that execute the instruction in the second run of each case.
SOME_LANES = 0xA5C3F017

SPECIAL_WIDTHS = {"pred": 1, "e4m3x2": 16, "e5m2x2": 16, "tf32": 32}


def bits_of(type_name: str) -> int:
    """Bits of a register of this type; 1 for a predicate."""
    if type_name in SPECIAL_WIDTHS:
        return SPECIAL_WIDTHS[type_name]
    digits = "".join(c for c in type_name.removesuffix("x2") if c.isdigit())
    return int(digits) * (2 if type_name.endswith("x2") else 1)


def dtype_of(type_name: str) -> type[np.unsignedinteger]:
    """The array element that holds the type's bits; a predicate is a uint32."""
    return {1: np.uint32, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits_of(type_name)]


@dataclass(frozen=True)
class Case:
    """One kernel of a sheet."""

    sheet: Sheet
    name: str
    text: str
    result: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return self.text.split(" ")[0]

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """The results' bits. Also checks that lanes which do not execute the instruction keep their value."""
        assert len(inputs) == len(self.sources)
        arrays = [np.ascontiguousarray(x, dtype=dtype_of(t)) for x, t in zip(inputs, self.sources, strict=True)]
        count = len(arrays[0])
        kernel = self.sheet.module[self.name]
        results = []
        for lanes in (0xFFFFFFFF, SOME_LANES):
            out = np.full(count, 0xAA, dtype_of(self.result))
            kernel((count + BLOCK - 1) // BLOCK, BLOCK, out, *arrays, count, lanes)
            results.append(out)
        active = (SOME_LANES >> (np.arange(count) % 32)) & 1
        np.testing.assert_array_equal(results[1], np.where(active, results[0], 0).astype(results[0].dtype))
        return results[0]


class Sheet:
    """The cases of a test file."""

    def __init__(self, target: str = "sm_90a") -> None:
        self.target = target
        self.cases: list[Case] = []

    def add(self, text: str, result: str, *sources: str) -> Case:
        """An instruction on d, a, b, c, e, such as "add.s32 d, a, b"; several are separated by ";"."""
        case = Case(self, f"k{len(self.cases)}", text, result, sources)
        self.cases.append(case)
        return case

    @cached_property
    def ptx(self) -> str:
        """The text of all kernels."""
        head = f".version 8.6\n.target {self.target}\n.address_size 64\n"
        return head + "".join(kernel_text(case) for case in self.cases)

    @cached_property
    def module(self) -> emulator.Module:
        """The kernels on a virtual GPU."""
        return emulator.Gpu("H100", counters=False).load(self.ptx)

    def assemble(self) -> None:
        """Fails where ptxas rejects a kernel; skips where there is no ptxas."""
        ptxas = find_ptxas()
        if ptxas is None:
            pytest.skip("no ptxas: set CUDA_HOME, put it on PATH, or pip install nvidia-cuda-nvcc")
        command = [ptxas, "--compile-only", "-O0", f"-arch={self.target}", "-o", os.devnull, "/dev/stdin"]
        done = subprocess.run(command, input=self.ptx, capture_output=True, text=True)
        lines = self.ptx.splitlines()
        wrong = [
            f"{message}\n    {lines[int(message.split('line ')[1].split(';')[0]) - 1].strip()}"
            if "line " in message
            else message
            for message in done.stderr.splitlines()
        ]
        assert done.returncode == 0, "\n".join(wrong[:40])


def find_ptxas() -> Path | None:
    """The assembler, from CUDA_HOME, PATH, or the wheel nvidia-cuda-nvcc."""
    candidates = [Path(os.environ["CUDA_HOME"]) / "bin/ptxas"] if "CUDA_HOME" in os.environ else []
    if found := shutil.which("ptxas"):
        candidates.append(Path(found))
    candidates.append(Path("/usr/local/cuda/bin/ptxas"))
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    candidates += [site / "cu13/bin/ptxas", site / "cuda_nvcc/bin/ptxas"]
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _register(type_name: str) -> str:
    bits = bits_of(type_name)
    return ".pred" if bits == 1 else f".b{max(bits, 16)}"


def _memory(type_name: str) -> str:
    bits = bits_of(type_name)
    return "u8" if bits == 8 else f"b{max(bits, 32) if bits == 1 else bits}"


def kernel_text(case: Case) -> str:
    """The PTX of one case."""
    names = "abce"[: len(case.sources)]
    lines = [
        f".visible .entry {case.name}(",
        "  .param .u64 out,",
        *(f"  .param .u64 in_{name}," for name in names),
        "  .param .u32 count, .param .u32 lanes)",
        "{",
        "  .reg .pred %p, %q, %r, %s;",
        "  .reg .b16 %h, %h1, %h2, %h3;",
        "  .reg .b32 %w, %w1, %w2, %w3, %index, %count, %lanes, %block, %threads, %thread;",
        "  .reg .b64 %x, %x1, %x2, %address, %pointer;",
        f"  .reg {_register(case.result)} d;",
        *(f"  .reg {_register(t)} {name};" for name, t in zip(names, case.sources, strict=True)),
        "  mov.u32 %block, %ctaid.x;",
        "  mov.u32 %threads, %ntid.x;",
        "  mov.u32 %thread, %tid.x;",
        "  mad.lo.u32 %index, %block, %threads, %thread;",
        "  ld.param.u32 %count, [count];",
        "  setp.ge.u32 %p, %index, %count;",
        "  @%p bra END;",
    ]
    for name, type_name in zip(names, case.sources, strict=True):
        size = dtype_of(type_name)().nbytes
        lines += [
            f"  ld.param.u64 %pointer, [in_{name}];",
            f"  mad.wide.u32 %address, %index, {size}, %pointer;",
        ]
        if type_name == "pred":
            lines += ["  ld.global.b32 %w, [%address];", f"  setp.ne.b32 {name}, %w, 0;"]
        else:
            lines += [f"  ld.global.{_memory(type_name)} {name}, [%address];"]
    zero = "mov.pred d, 0;" if case.result == "pred" else f"mov.b{max(bits_of(case.result), 16)} d, 0;"
    lines += [
        "  ld.param.u64 %pointer, [out];",
        f"  mad.wide.u32 %address, %index, {dtype_of(case.result)().nbytes}, %pointer;",
        f"  {zero}",
        "  ld.param.u32 %lanes, [lanes];",
        "  and.b32 %thread, %thread, 31;",
        "  shr.u32 %lanes, %lanes, %thread;",
        "  and.b32 %lanes, %lanes, 1;",
        "  setp.eq.u32 %p, %lanes, 0;",
        "  @%p bra STORE;",
        *(f"  {line.strip()};" for line in case.text.split(";")),
        "STORE:",
    ]
    if case.result == "pred":
        lines += ["  selp.u32 %w, 1, 0, d;", "  st.global.b32 [%address], %w;"]
    else:
        lines += [f"  st.global.{_memory(case.result)} [%address], d;"]
    return "\n".join([*lines, "END:", "  ret;", "}", ""])
