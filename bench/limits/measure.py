"""Everything that `python -m bench limits` measures, and its JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.limits.floor import dram_bytes
from bench.limits.library import Kernels
from bench.machine import describe_machine
from bench.results import write_json

_SMALLEST: Final = 16 << 10
_LARGEST: Final = 512 << 20


@dataclass(frozen=True)
class Peak:
    """Operations per second of all threads in registers."""

    unit: str
    threads: int
    operations_per_second: float


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of all threads, each on `bytes_per_thread` of its own; memcpy counts reads and writes."""

    way: str
    threads: int
    bytes_per_thread: int
    bytes_per_second: float


@dataclass(frozen=True)
class FirstTouch:
    """Bytes per second of all threads at which fresh memory appears in pages of that kind."""

    pages: str
    threads: int
    bytes_per_second: float


@dataclass
class MachineLimits:
    """One run."""

    KIND: ClassVar[str] = "limits"
    date: str
    machine: dict[str, Any]
    threads: list[int]
    peaks: list[Peak] = field(default_factory=list)
    bandwidths: list[Bandwidth] = field(default_factory=list)
    first_touches: list[FirstTouch] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace `path` in one step."""
        write_json(path, {"kind": self.KIND, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> MachineLimits:
        """From a file whose "kind" is KIND."""
        content = json.loads(path.read_text())
        del content["kind"]
        return cls(
            peaks=[Peak(**entry) for entry in content.pop("peaks")],
            bandwidths=[Bandwidth(**entry) for entry in content.pop("bandwidths")],
            first_touches=[FirstTouch(**entry) for entry in content.pop("first_touches")],
            **content,
        )


def working_sets(threads: int, quick: bool) -> list[int]:
    """Bytes for each thread: powers of two, as far as memory goes."""
    largest = 1 << 20 if quick else min(_LARGEST, dram_bytes(threads))
    return [size for shift in range(30) if (size := _SMALLEST << shift) <= largest]


def measure(kernels: Kernels, threads: Sequence[int], quick: bool, on_step: Callable[[str], None]) -> MachineLimits:
    """About half a minute for each number of threads; `on_step` hears what comes next."""
    # Several trials even when quick: one alone is worth nothing on a machine that is also doing something else.
    seconds, trials = (0.002, 5) if quick else (0.04, 4)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    result = MachineLimits(date, describe_machine(), list(threads))
    for count in threads:
        for unit in kernels.units:
            on_step(f"{unit}, {count} thread(s)")
            result.peaks.append(Peak(unit, count, kernels.peak(unit, count, seconds, trials)))
        sizes = working_sets(count, quick)
        for way in kernels.ways:
            # Writes matter where no cache takes them; that is the last size.
            for size in sizes if way.startswith("read") else sizes[-1:]:
                on_step(f"{way}, {count} thread(s), {size >> 10} KiB")
                rate = kernels.bandwidth(way, count, size, seconds, trials)
                result.bandwidths.append(Bandwidth(way, count, size, rate))
        for pages, huge in (("4 KiB", False), ("huge", True)):
            on_step(f"first touch, {pages} pages, {count} thread(s)")
            rate = kernels.first_touch(count, min(sizes[-1], 256 << 20), huge, 1 if quick else 3)
            result.first_touches.append(FirstTouch(pages, count, rate))
    return result
