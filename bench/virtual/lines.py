"""Where a kernel asks for more than the ideal: its source lines with bank conflicts and with scattered accesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    import emulator


@dataclass
class LineCost:
    """Of one source line, summed over the launches of a kernel."""

    file: str
    line: int
    warp_instructions: int = 0
    lost_wavefronts: int = 0
    lost_sectors: int = 0


def costs(launches: Sequence[emulator.Launch]) -> dict[str, list[LineCost]]:
    """By kernel. Losses are counted by instruction, where one that saves does not make up for one that loses."""
    by_kernel: dict[str, dict[tuple[str, int], LineCost]] = {}
    for launch in launches:
        lines = by_kernel.setdefault(launch.kernel, {})
        for instruction in launch.instructions():
            key = (instruction.file, instruction.line)
            cost = lines.setdefault(key, LineCost(*key))
            counters = instruction.counters
            cost.warp_instructions += counters.warp_instructions
            cost.lost_wavefronts += max(0, counters.shared_wavefronts - counters.shared_wavefronts_ideal)
            cost.lost_sectors += max(0, counters.global_sectors - counters.global_sectors_ideal)
    return {kernel: list(lines.values()) for kernel, lines in by_kernel.items()}


def tables(launches: Sequence[emulator.Launch], count: int) -> Iterator[Table]:
    """For each kernel its `count` busiest lines and all that lose more than a hundredth of what the kernel asks for."""
    totals: dict[str, tuple[int, int]] = {}
    for launch in launches:
        wavefronts, sectors = totals.get(launch.kernel, (0, 0))
        c = launch.counters
        totals[launch.kernel] = (wavefronts + c.shared_wavefronts, sectors + c.global_sectors)
    for kernel, lines in costs(launches).items():
        wavefronts, sectors = totals[kernel]
        busiest = sorted(lines, key=lambda line: -line.warp_instructions)[:count]
        losing = [x for x in lines if 100 * x.lost_wavefronts > wavefronts or 100 * x.lost_sectors > sectors]
        shown = {(x.file, x.line): x for x in (*busiest, *losing)}
        instructions = sum(line.warp_instructions for line in lines)
        table = Table(title=kernel, box=box.SIMPLE_HEAD)
        table.add_column("line", no_wrap=True)
        for heading in ("instructions", "share", "wavefronts lost", "of all", "sectors lost", "of all"):
            table.add_column(heading, justify="right")
        for key in sorted(shown):
            cost = shown[key]
            table.add_row(
                f"{Path(cost.file).name}:{cost.line}",
                f"{cost.warp_instructions:,}",
                f"{cost.warp_instructions / max(1, instructions):.1%}",
                f"{cost.lost_wavefronts:,}" if cost.lost_wavefronts else "·",
                f"{cost.lost_wavefronts / wavefronts:.1%}" if cost.lost_wavefronts else "",
                f"{cost.lost_sectors:,}" if cost.lost_sectors else "·",
                f"{cost.lost_sectors / sectors:.1%}" if cost.lost_sectors else "",
            )
        yield table
