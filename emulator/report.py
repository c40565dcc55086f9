"""Tables of counters, printed with rich."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from emulator import _core

if TYPE_CHECKING:
    from emulator.launch import Launch

__all__ = ["chips_table", "counters_table", "lines_table", "print_launch"]

_COLUMNS = (
    ("instructions", "warp_instructions"),
    ("MACs", "matrix_macs"),
    ("global\nsectors", "global_sectors"),
    ("ideal", "global_sectors_ideal"),
    ("shared\nwavefronts", "shared_wavefronts"),
    ("ideal", "shared_wavefronts_ideal"),
    ("async\nbytes", "async_bytes"),
    ("barriers", "barriers"),
    ("divergent\nbranches", "divergent_branches"),
)


def _number(value: int) -> str:
    return f"{value:,}" if value else "·"


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else ""


def counters_table(launch: Launch) -> Table:
    """The totals of a launch."""
    c = launch.counters
    table = Table(title=f"{launch.kernel} on {launch.chip}: grid {launch.grid}, block {launch.block}")
    table.add_column("counter")
    table.add_column("value", justify="right")
    table.add_column("note")
    notes = {
        "lane_instructions": f"{_ratio(c.lane_instructions, c.warp_instructions)} lanes per instruction",
        "global_sectors": f"{_ratio(c.global_sectors, c.global_requests)} per request",
        "global_sectors_ideal": f"{_ratio(c.global_sectors, c.global_sectors_ideal)} times the ideal is used",
        "shared_wavefronts": f"{_ratio(c.shared_wavefronts, c.shared_requests)} per request",
        "shared_wavefronts_ideal": f"{c.bank_conflicts:,} wavefronts lost to bank conflicts",
        "distinct_sectors_read": f"{32 * c.distinct_sectors_read:,} bytes",
        "distinct_sectors_written": f"{32 * c.distinct_sectors_written:,} bytes",
    }
    for field, value in c.to_dict().items():
        if isinstance(value, int):
            table.add_row(field.replace("_", " "), _number(value), notes.get(field, "") if value else "")
    for kind, value in c.instructions_by_class.items():
        if value:
            table.add_row(f"  {kind} instructions", _number(value), f"{_ratio(100 * value, c.warp_instructions)} %")
    return table


def lines_table(launch: Launch, count: int) -> Table:
    """The source lines that most instructions come from."""
    table = Table(title="busiest source lines")
    table.add_column("line", no_wrap=True)
    shown = [(title, field) for title, field in _COLUMNS if getattr(launch.counters, field)]
    for title, _ in shown:
        table.add_column(title, justify="right")
    busiest = sorted(launch.lines(), key=lambda x: -x.counters.warp_instructions)[:count]
    for x in sorted(busiest, key=lambda x: (x.file, x.line)):
        numbers = [_number(getattr(x.counters, field)) for _, field in shown]
        table.add_row(f"{Path(x.file).name}:{x.line}" if x.line else "(no line)", *numbers)
    return table


def chips_table() -> Table:
    """The chips that there are."""
    table = Table(title="chips")
    for title in ("name", "architecture"):
        table.add_column(title, no_wrap=True)
    for title in ("SMs", "shared/block", "memory", "GB/s", "bf16 TFLOP/s", "fp8", "cluster"):
        table.add_column(title, justify="right")
    for chip in _core.chips():
        table.add_row(
            chip.name,
            f"sm_{chip.major}{chip.minor}{'a' if chip.arch_specific else ''}",
            str(chip.multiprocessors),
            f"{chip.shared_per_block_optin // 1024} KiB",
            f"{chip.global_bytes >> 30} GiB",
            f"{chip.dram_bytes_per_second / 1e9:.0f}",
            f"{chip.bf16_flops / 1e12:.0f}",
            f"{chip.fp8_flops / 1e12:.0f}" if chip.fp8_flops else "·",
            str(chip.max_cluster),
        )
    return table


def print_launch(launch: Launch, lines: int, console: Console | None = None) -> None:
    """Prints both tables of a launch."""
    console = console or Console()
    console.print(counters_table(launch))
    if lines and launch.instructions():
        console.print(lines_table(launch, lines))
