"""The least time that some work can take here: FLOPs over the peak of the best unit, bytes over the best DRAM
bandwidth, whichever is more.

Measured with `kernels.cpp`. Where that cannot be compiled, PyTorch stands in: torch.mm of square matrices and
torch.sum over a large tensor. Those are no peaks: a kernel that is better than that GEMM passes 100 %.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from bench.limits.library import Kernels, NoKernels, load
from bench.machine import ISAS, without_folders

# Number format -> units that can multiply it, with the instruction set of moe_ext that may use them.
_FP32: Final = {"avx2 fp32": "avx2", "avx512 fp32": "avx512"}
UNITS: Final = {
    "fp32": _FP32,
    "bf16": {**_FP32, "avx512 bf16": "avx512bf16", "amx bf16": "amx"},
    "int8": {**_FP32, "avx512 int8": "avx512", "amx int8": "amx"},
}
_TORCH_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Floor:
    """`limit`: "flop" or "memory", whichever takes the `seconds`."""

    seconds: float
    limit: str


@dataclass(frozen=True)
class Limits:
    """Rates of all threads by number format, and what they were measured with. `why_not`: why it wasn't the kernels."""

    flops_per_second: dict[str, float]
    flops_measured_with: dict[str, str]
    bytes_per_second: float
    bytes_measured_with: str
    why_not: str | None

    def floor(self, number_format: str, flops: int, num_bytes: int) -> Floor:
        """Of work that is done in that format. Without a rate of its own, int8 is bound by memory only."""
        rate = self.flops_per_second.get(number_format)
        arithmetic = flops / rate if rate else 0.0
        memory = num_bytes / self.bytes_per_second
        return Floor(max(arithmetic, memory), "flop" if arithmetic > memory else "memory")

    def best_of(self, other: Limits) -> Limits:
        """The higher of two measurements of the same kind."""
        best = {
            name: max(
                (rate, self.flops_measured_with[name]), (other.flops_per_second[name], other.flops_measured_with[name])
            )
            for name, rate in self.flops_per_second.items()
            if name in other.flops_per_second
        }
        num_bytes, way = max(
            (self.bytes_per_second, self.bytes_measured_with), (other.bytes_per_second, other.bytes_measured_with)
        )
        return Limits(
            {name: rate for name, (rate, _) in best.items()},
            {name: what for name, (_, what) in best.items()},
            num_bytes,
            way,
            self.why_not,
        )


def floors(dtype: str, flops: int, num_bytes: dict[str, int], limits: Limits) -> dict[str, Floor]:
    """Of a cell, by kind of weights."""
    return {w: limits.floor("int8" if w == "int8" else dtype, flops, size) for w, size in num_bytes.items()}


def dram_bytes(threads: int) -> int:
    """Bytes for each thread that no cache holds, and at most an eighth of the memory together."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(512 << 20, memory // 8 // threads)


def allowed_units(number_format: str, isa: str | None, present: Sequence[str]) -> list[str]:
    """Units for that format of a CPU that has those in `present`, none beyond a pinned instruction set."""
    highest = ISAS.index(isa or "amx")
    return [unit for unit, needs in UNITS[number_format].items() if unit in present and ISAS.index(needs) <= highest]


def _with_kernels(kernels: Kernels, threads: int, isa: str | None, quick: bool) -> Limits:
    trials = 2 if quick else 5
    # portable code has no unit here; its floor is that of AVX2.
    allowed = {name: allowed_units(name, "avx2" if isa == "portable" else isa, kernels.units) for name in UNITS}
    rates = {
        unit: kernels.peak(unit, threads, 0.005 if quick else 0.05, trials)
        for unit in dict.fromkeys(unit for units in allowed.values() for unit in units)
    }
    best = {name: max(units, key=lambda unit: rates[unit]) for name, units in allowed.items() if units}
    size = 8 << 20 if quick else dram_bytes(threads)
    reads = [way for way in kernels.ways if way.startswith("read")]
    bandwidth = {way: kernels.bandwidth(way, threads, size, 0.01 if quick else 0.1, trials) for way in reads}
    way = max(reads, key=lambda way: bandwidth[way])
    return Limits(
        {name: rates[unit] for name, unit in best.items()},
        {name: f"{unit} in registers" for name, unit in best.items()},
        bandwidth[way],
        f"{way} of {size >> 20} MiB for each thread",
        None,
    )


def _quickest(function: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def _with_torch(quick: bool, why_not: str) -> Limits:
    size, read_bytes = (512, 1 << 24) if quick else (4096, 1 << 30)
    rates = {}
    for name, dtype in _TORCH_DTYPES.items():
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        rates[name] = 2 * size**3 / _quickest(partial(torch.mm, a, b, out=out), 5)
    block = torch.ones(read_bytes // 4)
    return Limits(
        rates,
        dict.fromkeys(rates, f"torch.mm of {size}³"),
        read_bytes / _quickest(block.sum, 5),
        f"torch.sum over {read_bytes >> 20} MiB",
        why_not,
    )


def measure_limits(threads: int, isa: str | None = None, quick: bool = False) -> Limits:
    """In a few seconds; `isa`: no units beyond this instruction set. PyTorch must be set to `threads` already."""
    try:
        return _with_kernels(load(), threads, isa, quick)
    except (NoKernels, MemoryError) as error:
        return _with_torch(quick, without_folders(str(error)))
