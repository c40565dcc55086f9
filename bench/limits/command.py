"""`python -m bench limits` on the command line: tables, JSON, a picture of bandwidth by working set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.console import Console
from rich.table import Table

from bench.limits.library import load
from bench.limits.measure import MachineLimits, measure
from bench.machine import counted_threads
from bench.results import default_output

_STYLES: Final = {"read, 1 stream": "--", "read, 8 streams": "-"}
_COLOURS: Final = ("#2a6fbb", "#e39a3b", "#3d8f5f", "#a8324a", "#6f4fa0", "#555555")


def add_parser(commands: Any) -> None:
    """The subcommand `limits`."""
    parser = commands.add_parser("limits", help="measure what the machine can do: arithmetic, bandwidth, fresh pages")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: 1, 2, 4, ... and all")
    parser.add_argument("--quick", action="store_true", help="see the machinery run: short and in the caches")
    parser.add_argument("--output", type=Path, help="default: bench/results/<date>-limits.json, with a PNG beside it")
    parser.set_defaults(action=_run)


def all_threads() -> list[int]:
    """Powers of two up to the CPUs that this process may use, and all of them."""
    cpus = len(os.sched_getaffinity(0))
    return sorted({1 << shift for shift in range(cpus.bit_length()) if 1 << shift <= cpus} | {cpus})


def title(result: MachineLimits) -> str:
    """Machine and day."""
    return f"{result.machine['cpu']}, {result.machine['cores']} cores, {result.date[:10]}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"


def _table(
    heading: str, first: str, threads: Sequence[int], rows: Iterator[tuple[str, list[float]]], unit: str
) -> Table:
    table = Table(title=f"{heading} ({unit})", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for count in threads:
        table.add_column(counted_threads(count), justify="right", no_wrap=True)
    for name, rates in rows:
        table.add_row(name, *(f"{rate / 1e9:.1f}" if rate < 1e11 else f"{rate / 1e9:.0f}" for rate in rates))
    return table


def tables(result: MachineLimits) -> Iterator[Table]:
    """Arithmetic, memory by working set, fresh pages."""

    def peaks() -> Iterator[tuple[str, list[float]]]:
        for unit in dict.fromkeys(p.unit for p in result.peaks):
            yield unit, [p.operations_per_second for p in result.peaks if p.unit == unit]

    def bandwidths() -> Iterator[tuple[str, list[float]]]:
        for way, size in dict.fromkeys((b.way, b.bytes_per_thread) for b in result.bandwidths):
            found = {b.threads: b for b in result.bandwidths if (b.way, b.bytes_per_thread) == (way, size)}
            # More threads may leave less memory for each.
            rates = [found[count].bytes_per_second if count in found else float("nan") for count in result.threads]
            yield f"{way}, {_size(size)}", rates

    def first_touches() -> Iterator[tuple[str, list[float]]]:
        for pages in dict.fromkeys(f.pages for f in result.first_touches):
            yield f"{pages} pages", [f.bytes_per_second for f in result.first_touches if f.pages == pages]

    yield _table("arithmetic in registers", "unit", result.threads, peaks(), "10⁹ operations/s; a multiply-add is two")
    yield _table("memory, by bytes of each thread", "way", result.threads, bandwidths(), "GB/s")
    yield _table("first touch of fresh memory", "pages", result.threads, first_touches(), "GB/s")


def draw(result: MachineLimits, path: Path) -> None:
    """Write a PNG of bandwidth by working set to `path`."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for threads, colour in zip(result.threads, _COLOURS * len(result.threads), strict=False):
        for way in dict.fromkeys(b.way for b in result.bandwidths):
            points = [b for b in result.bandwidths if (b.way, b.threads) == (way, threads)]
            sizes, rates = [b.bytes_per_thread for b in points], [b.bytes_per_second / 1e9 for b in points]
            if way in _STYLES:
                label = f"{way}, {counted_threads(threads)}"
                axes.plot(sizes, rates, _STYLES[way], marker="o", markersize=3, color=colour, label=label)
            else:
                axes.plot(sizes, rates, "_", markersize=9, color=colour)
                axes.annotate(
                    way, (sizes[-1], rates[-1]), xytext=(8, 0), textcoords="offset points",
                    va="center", fontsize=7, color=colour,
                )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({b.bytes_per_thread for b in result.bandwidths})
    axes.set_xticks(sizes[::2], [_size(size) for size in sizes[::2]], fontsize=8)
    axes.set_xlabel("working set of each thread")
    axes.set_ylabel("GB/s, all threads")
    axes.margins(x=0.12)
    axes.grid(color="#dddddd", which="both", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title(result), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(result: MachineLimits, console: Console) -> None:
    """All tables on the terminal."""
    console.print(title(result), style="bold")
    for table in tables(result):
        console.print(table)


def _run(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    kernels = load()
    threads = sorted(set(arguments.threads or all_threads()))
    if threads[0] < 1:
        raise ValueError("--threads must be at least 1")
    with console.status("measuring") as status:
        result = measure(kernels, threads, arguments.quick, status.update)
    output: Path = arguments.output or default_output("limits", *(["quick"] if arguments.quick else []))
    result.save(output)
    draw(result, output.with_suffix(".png"))
    show(result, console)
    console.print(f"written to {output} and {output.with_suffix('.png').name}", soft_wrap=True)
    return 0
