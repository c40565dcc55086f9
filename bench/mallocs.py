"""`python -m bench run --both-mallocs`: the same run in two processes, one with the system's allocator settings and one
with tuned ones, which help some contenders and hurt others. The better of a contender's two figures counts: a cell's
ratio is the lower of the two processes' ratios."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Final

from rich.console import Console

from bench.limits.floor import Limits, floors
from bench.plot import draw_bars
from bench.report import HEADINGS, TABLE_WIDTH, Row, notes, render_markdown, render_rich, summaries, table_row, title
from bench.results import Cell, Comparison, Report, write_json

_HEADINGS: Final = (*HEADINGS[:5], "default", "tuned", *HEADINGS[5:])
_MISSING: Final = "–"


@dataclass
class BothMallocs:
    """The two reports, cells in the same order."""

    KIND: ClassVar[str] = "both mallocs"
    default: Report
    tuned: Report

    def save(self, path: Path) -> None:
        """Replace `path` in one step. The lower ratios follow from the reports and are written for readers only."""
        lower = {
            f"{cell.key}/{chosen.weights}": chosen.ratio.median
            for cell, chosen, _ in self.chosen()
            if chosen.ratio is not None
        }
        content = {"kind": self.KIND, "lower_ratios": lower}
        write_json(path, {**content, "default": self.default.content(), "tuned": self.tuned.content()})

    @classmethod
    def load(cls, path: Path) -> BothMallocs:
        """From a file whose "kind" is KIND."""
        content = json.loads(path.read_text())
        return cls(Report.of(content["default"]), Report.of(content["tuned"]))

    def chosen(self) -> Iterator[tuple[Cell, Comparison, tuple[Comparison, Comparison]]]:
        """For each cell and kind of weights that both processes timed: the cell and comparison whose ratio is lower,
        and both comparisons, the default one first."""
        for cells in zip(self.default.cells, self.tuned.cells, strict=True):
            for weights in (compared.weights for compared in cells[0].comparisons):
                pair = (cells[0].compared(weights), cells[1].compared(weights))
                ratios = [compared.ratio.median if compared.ratio else float("inf") for compared in pair]
                lower = ratios.index(min(ratios))
                yield cells[lower], pair[lower], pair


def share_limits(both: BothMallocs) -> None:
    """It is one machine: the higher of the rates that the two runs measured holds for the cells of both."""
    limits = Limits(**both.default.limits).best_of(Limits(**both.tuned.limits))
    for report in (both.default, both.tuned):
        report.limits = asdict(limits)
        for cell in report.cells:
            cell.floors = floors(cell.dtype, cell.flops, cell.compulsory_bytes, limits)


def run(argv: Sequence[str], output: Path, console: Console) -> tuple[BothMallocs, int]:
    """Run `python -m bench *argv` (which says --both-mallocs) in both ways. The reports, and the worse exit status;
    raises OSError where a process wrote none."""
    rest = [argument for argument in argv if argument != "--both-mallocs"]
    reports, statuses = [], []
    for name, extra in (("default", []), ("tuned", ["--tuned-malloc"])):
        console.print(f"[bold]allocator: {name}[/bold]")
        part = output.with_name(f"{output.stem}-{name}.part.json")
        command = [sys.executable, "-m", "bench", *rest, *extra, "--output", str(part)]
        statuses.append(subprocess.run(command, check=False).returncode)
        if not part.exists():
            raise OSError(f"the run with the {name} allocator settings ended with status {statuses[-1]}")
        reports.append(Report.load(part))
    both = BothMallocs(*reports)
    share_limits(both)
    both.save(output)
    for name in ("default", "tuned"):
        output.with_name(f"{output.stem}-{name}.part.json").unlink()
    console.print(f"written to {output}", soft_wrap=True)
    return both, max(statuses, key=abs)


def _short(compared: Comparison) -> str:
    if compared.ratio is None or compared.best_other is None:
        return _MISSING
    return f"{compared.ratio.median:.2f}× {compared.best_other.contender}"


def _rows(both: BothMallocs, spread: bool) -> Iterator[Row]:
    for cell, lower, pair in both.chosen():
        row, ratio = table_row(cell, lower, spread)
        yield (*row[:5], *map(_short, pair), *row[5:]), ratio


def _remarks(both: BothMallocs) -> Iterator[str]:
    yield (
        "Two runs in processes of their own: default, with the system's allocator settings, and tuned, with glibc told "
        "to use huge pages and to keep freed memory. The speed-up is the lower of the two, and the rest of the row is "
        "of that run. Limits are the better of both; what else follows is of the default run."
    )
    yield from summaries(zip(both.default.cells, both.tuned.cells, strict=True))
    yield from notes(both.default)


def markdown(both: BothMallocs) -> str:
    """For a README."""
    return render_markdown(title(both.default), _HEADINGS, _rows(both, spread=True), _remarks(both))


def show(both: BothMallocs, console: Console) -> None:
    """On the terminal."""
    console.width = max(console.width, TABLE_WIDTH + 50)
    console.print(render_rich(title(both.default), _HEADINGS, _rows(both, spread=False)))
    for remark in _remarks(both):
        console.print(f"• {remark}", soft_wrap=True, highlight=False, markup=False)


def draw(both: BothMallocs, path: Path) -> None:
    """Bars of the lower ratios. Raises ValueError where there are none."""
    draw_bars([(cell, lower) for cell, lower, _ in both.chosen()], f"{title(both.default)}, lower of two runs", path)
