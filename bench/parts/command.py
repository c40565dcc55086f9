"""`python -m bench parts` on the command line: check, time in turns, tables and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.limits.floor import Limits, measure_limits
from bench.machine import ForeignLoad, without_folders
from bench.parts.table import ENTRIES, PARTS
from bench.parts.work import Part, Sizes, Tensors, tolerance
from bench.runner import DTYPES
from bench.timed_run import TimedRun, add_arguments, output_of
from bench.timing import Spread, Step, time_interleaved

_WIDTH: Final = 130


@dataclass
class PartOutcome:
    """status: ok | wrong | skipped | failed, with a reason unless ok; `error`: relative, against float64."""

    contender: str
    ours: bool
    status: str
    reason: str | None = None
    error: float | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass
class PartCell:
    """One part at one size: `num_bytes` are those that it cannot avoid moving."""

    part: str
    dtype: str
    sizes: dict[str, int]
    num_bytes: int
    floor_seconds: float
    foreign_load: float | None = None
    outcomes: list[PartOutcome] = field(default_factory=list)

    def ratio_to(self, other: PartOutcome) -> Spread | None:
        """Speed of moe_ext over `other`, of the times of each round."""
        ours = next((o for o in self.outcomes if o.ours and o.seconds), None)
        if ours is None or not other.seconds:
            return None
        return Spread.of([theirs / mine for theirs, mine in zip(other.seconds, ours.seconds, strict=True)])


@dataclass
class PartsReport(TimedRun):
    """One run."""

    KIND: ClassVar[str] = "parts"
    cells: list[PartCell] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Spreads follow from the times and are written for readers only."""
        content = asdict(self)
        for cell in content["cells"]:
            for outcome in cell["outcomes"]:
                outcome["spread"] = asdict(Spread.of(outcome["seconds"])) if outcome["seconds"] else None
        self.write(path, content)

    @classmethod
    def load(cls, path: Path) -> PartsReport:
        """From a file whose "kind" is KIND."""
        content = cls.read(path)
        cells = []
        for cell in content.pop("cells"):
            outcomes = cell.pop("outcomes")
            for outcome in outcomes:
                del outcome["spread"]
            cells.append(PartCell(outcomes=[PartOutcome(**outcome) for outcome in outcomes], **cell))
        return cls(cells=cells, **content)


def _check(part: Part, tensors: Tensors) -> tuple[list[PartOutcome], dict[str, Step]]:
    outcomes, steps = [], {}
    for name, ours, missing, build in ENTRIES[part.name]:
        outcome = PartOutcome(name, ours, "skipped", missing())
        outcomes.append(outcome)
        if outcome.reason:
            continue
        try:
            step = build(tensors)
            outcome.error = part.check(tensors, step())
        except Exception as error:  # a contender is foreign code: whatever it raises is its result
            outcome.status, outcome.reason = "failed", without_folders(f"{type(error).__name__}: {error}")
            continue
        if not outcome.error <= tolerance(tensors):
            outcome.status, outcome.reason = "wrong", f"relative error {outcome.error:.2g} > {tolerance(tensors):g}"
            continue
        outcome.status = "ok"
        steps[name] = step
    return outcomes, steps


def measure(report: PartsReport, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Fills `report.cells`."""
    limits = measure_limits(arguments.threads, quick=arguments.quick)
    for dtype in arguments.dtypes:
        for num_experts in arguments.experts:
            sizes = Sizes(arguments.tokens, num_experts, arguments.top_k, arguments.hidden)
            tensors = Tensors(sizes, DTYPES[dtype])
            for name in arguments.parts:
                say(f"{name} {dtype} E={num_experts}")
                part = PARTS[name]
                outcomes, steps = _check(part, tensors)
                num_bytes = part.num_bytes(sizes, tensors.x.element_size())
                cell = PartCell(name, dtype, asdict(sizes), num_bytes, 0.0, outcomes=outcomes)
                if steps:
                    load = ForeignLoad()
                    seconds = time_interleaved(steps, arguments.repeats)
                    cell.foreign_load = load.share()
                    for outcome in outcomes:
                        outcome.seconds = seconds.get(outcome.contender, [])
                report.cells.append(cell)
            limits = limits.best_of(measure_limits(arguments.threads, quick=arguments.quick))
    _set_floors(report, limits)


def _set_floors(report: PartsReport, limits: Limits) -> None:
    report.limits = asdict(limits)
    for cell in report.cells:
        cell.floor_seconds = cell.num_bytes / limits.bytes_per_second


def show(report: PartsReport, console: Console) -> None:
    """One table, a line for each contender, and what the floor is."""
    console.width = max(console.width, _WIDTH)
    limits = report.limits
    table = Table(title=report.title, box=box.SIMPLE_HEAD)
    for heading in ("part", "dtype", "E", "contender", "ms", "quartiles", "floors", "moe_ext is", "error"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("E", "ms", "floors") else "left")
    for cell in report.cells:
        head = (cell.part, cell.dtype, str(cell.sizes["num_experts"]))
        for outcome in sorted(cell.outcomes, key=lambda o: Spread.of(o.seconds).median if o.seconds else float("inf")):
            if not outcome.seconds:
                table.add_row(*head, outcome.contender, "", f"{outcome.status}: {escape(outcome.reason or '')}")
                continue
            spread = Spread.of(outcome.seconds)
            ratio = cell.ratio_to(outcome)
            table.add_row(
                *head,
                outcome.contender,
                f"{spread.median * 1e3:.3f}",
                f"{spread.quartile_1 * 1e3:.3f}–{spread.quartile_3 * 1e3:.3f}",
                f"{spread.median / cell.floor_seconds:.1f}",
                f"{ratio.median:.1f}× as quick" if ratio and not outcome.ours else "",
                f"{outcome.error:.0e}",
                style="green" if outcome.ours else "",
            )
            head = ("", "", "")
    console.print(table)
    console.print(
        f"• Floors: median time over (compulsory bytes / {limits['bytes_per_second'] / 1e9:.1f} GB/s,"
        f" {limits['bytes_measured_with']}); 1 is the machine's limit. What fits the caches can be below it.",
        soft_wrap=True,
        highlight=False,
    )


def add_parser(commands: Any) -> None:
    """The subcommand `parts`."""
    parser = commands.add_parser("parts", help="ops by themselves: routers, permute, combine and others")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tokens", type=int, default=4096, metavar="T")
    parser.add_argument("--experts", nargs="+", type=int, default=[128, 256], metavar="E")
    parser.add_argument("--top-k", type=int, default=8, metavar="K")
    parser.add_argument("--hidden", type=int, default=2048, metavar="H")
    add_arguments(parser, PartsReport.KIND, dtypes=list(DTYPES), repeats=15, also="")
    parser.set_defaults(action=_run)


def _run(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    report = PartsReport(**PartsReport.head(arguments, argv))
    with console.status("measuring") as status:
        measure(report, arguments, status.update)
    output = output_of(arguments, PartsReport.KIND)
    report.save(output)
    show(report, console)
    console.print(f"written to {output}", soft_wrap=True)
    broken = any(o.ours and o.status in ("wrong", "failed") for cell in report.cells for o in cell.outcomes)
    return 1 if broken else 0
