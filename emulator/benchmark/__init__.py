"""How fast the emulator is: `python -m emulator benchmark`.

Each kernel's result is checked before it is timed. The time is that of one host thread's processor, so that a busy
machine counts less; the median of the repeats, with checks on and off in turn.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import emulator

KERNELS = Path(__file__).with_name("kernels.cu")


@dataclass
class Case:
    """A kernel, how to launch it once, and what its rate counts."""

    name: str
    unit: str
    goal: float  # of the rate with checks on, in units of 10⁹ a second
    launch: Callable[[emulator.Gpu], emulator.Launch]
    check: Callable[[], None]
    work: Callable[[emulator.Launch], int]


@dataclass
class Result:
    name: str
    unit: str
    checked: float  # 10⁹ a second
    unchecked: float
    goal: float


def _bf16_grid(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Multiples of a quarter, so that sums are exact: their bfloat16 bits, and as float32."""
    values = (rng.integers(-4, 5, shape) * 0.25).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16), values


def cases(size: int = 512, elements: int = 1 << 20) -> list[Case]:
    rng = np.random.default_rng(0)
    sm_80 = emulator.compile_cuda(KERNELS, "sm_80")
    sm_90a = emulator.compile_cuda(KERNELS, "sm_90a")
    x, y = rng.standard_normal((2, elements)).astype(np.float32)
    total = np.zeros_like(x)
    (a_bits, a), (b_bits, b) = _bf16_grid(rng, (size, size)), _bf16_grid(rng, (size, size))
    c = np.zeros((size, size), np.float32)
    expected = a @ b.T

    def add(gpu: emulator.Gpu) -> emulator.Launch:
        return gpu.load(sm_80)["vector_add"](elements // 256, 256, x, y, total, elements)

    def mma(gpu: emulator.Gpu) -> emulator.Launch:
        c[:] = np.nan
        return gpu.load(sm_80)["gemm_mma"]((size // 64, size // 64), 128, a_bits, b_bits, c, size, size)

    def wgmma(gpu: emulator.Gpu) -> emulator.Launch:
        c[:] = np.nan
        map_a = emulator.TensorMap(a_bits, (64, 64), swizzle="128B")
        map_b = emulator.TensorMap(b_bits, (128, 64), swizzle="128B")
        shared_bytes = 3 * (64 + 128) * 64 * 2
        kernel = gpu.load(sm_90a)["gemm_wgmma"]
        return kernel((size // 128, size // 64), 160, map_a, map_b, c, size, size, shared_bytes=shared_bytes)

    def check_sum() -> None:
        np.testing.assert_array_equal(total, x + y)

    def check_product() -> None:
        np.testing.assert_array_equal(c, expected)

    return [
        Case("vector add", "lane-instructions", 0.2, add, check_sum, lambda launch: launch.counters.lane_instructions),
        Case(f"mma.sync GEMM {size}³", "multiply-adds", 1.0, mma, check_product, lambda _: size**3),
        Case(f"TMA + wgmma GEMM {size}³", "multiply-adds", 1.5, wgmma, check_product, lambda _: size**3),
    ]


def measure(case: Case, repeats: int) -> Result:
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        for checks in (True, False):
            gpu = emulator.Gpu("H100", checks=checks, counters=checks, host_threads=1)
            case.launch(gpu)  # decodes the kernel, and meets the memory
            case.check()
            begin = time.process_time()
            launch = case.launch(gpu)
            rates[checks].append(case.work(launch) / (time.process_time() - begin) / 1e9)
    return Result(case.name, case.unit, statistics.median(rates[True]), statistics.median(rates[False]), case.goal)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def run(repeats: int = 5, output: Path | None = None) -> dict[str, Any]:
    """Measures, prints the table, and writes JSON to `output`."""
    results = [measure(case, repeats) for case in track(cases(), description="emulator")]
    table = Table(title="10⁹ a second, one host thread's processor time")
    for column in ("kernel", "counts", "checks on", "goal", "checks off", "goal "):
        table.add_column(column)
    for r in results:
        table.add_row(r.name, r.unit, f"{r.checked:.2f}", f"{r.goal:.1f}", f"{r.unchecked:.2f}", f"{2 * r.goal:.1f}")
    Console().print(table)
    report = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "repeats": repeats,
        "results": [asdict(r) for r in results],
    }
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n")
    return report
