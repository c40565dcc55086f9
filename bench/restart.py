"""What must be in the environment before a process starts: allocator settings, which glibc reads then, and the
instruction set that PyTorch, oneDNN and MKL choose their kernels by."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from bench.machine import TUNED_MALLOC

# moe_ext's name of an instruction set -> settings that hold everybody else to it.
_OF_ISA: Final[dict[str, dict[str, str]]] = {
    isa: {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    for isa, aten, onednn, mkl in (
        ("portable", "default", "SSE41", "SSE4_2"),
        ("avx2", "avx2", "AVX2", "AVX2"),
        ("avx512", "avx512", "AVX512_CORE", "AVX512"),
        ("avx512bf16", "avx512", "AVX512_CORE_BF16", "AVX512"),
        ("amx", "avx512", "AVX512_CORE_AMX", "AVX512"),
    )
}


def needed_environment(tuned_malloc: bool, isa: str | None) -> dict[str, str]:
    """Settings of such a process, on top of what it inherits."""
    needed = {"GLIBC_TUNABLES": TUNED_MALLOC} if tuned_malloc else {}
    return needed | ({"MOE_EXT_CPU_ISA": isa} | _OF_ISA[isa] if isa else {})


def restart_with(needed: dict[str, str], argv: Sequence[str]) -> None:
    """Start `python -m bench *argv` over in this process's place, unless it already has these settings."""
    if all(os.environ.get(name) == value for name, value in needed.items()):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "bench", *argv], {**os.environ, **needed})
