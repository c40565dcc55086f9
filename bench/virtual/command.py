"""`python -m bench virtual` on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from bench.results import default_output
from bench.virtual.lines import tables
from bench.virtual.report import TABLE_WIDTH, notes, rich_tables, title
from bench.virtual.results import Report
from bench.virtual.runner import CONTENDERS, Runner, Settings
from bench.virtual.shapes import SHAPES, TINY, VirtualShape, find_shape
from bench.virtual.work import PHASES

if TYPE_CHECKING:
    import emulator

CHIPS: Final = ("A100", "L40S", "H100")


def _shape(name: str) -> VirtualShape:
    try:
        return find_shape(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_parser(commands: Any) -> None:
    """The subcommand `virtual`."""
    shapes = "; ".join(map(str, SHAPES.values()))
    parser = commands.add_parser(
        "virtual", help="count what the CUDA kernels do on the virtual GPU", epilog=f"Shapes. {shapes}."
    )
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), metavar="CHIP", help="default: %(default)s")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="SHAPE", help="default: all; see below")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--checks", action="store_true", help="look for races and the like too: slower, same counters")
    parser.add_argument("--lines", type=int, default=0, metavar="N", help="print moe_ext's N busiest lines per kernel")
    parser.add_argument("--quick", action="store_true", help="see the machinery run: a tiny shape unless --shapes says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: bench/results/<date>-virtual.json")
    parser.set_defaults(action=_run)


def show(report: Report, console: Console) -> None:
    """All tables and notes on the terminal."""
    console.width = max(console.width, TABLE_WIDTH)
    console.print(title(report), style="bold")
    for table in rich_tables(report):
        console.print(table)
    for note in notes(report):
        console.print(f"• {note}", soft_wrap=True, highlight=False, markup=False)


def _run(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    settings = Settings(
        chips=arguments.chips,
        shapes=arguments.shapes or ([TINY] if arguments.quick else list(SHAPES.values())),
        phases=arguments.phases,
        contenders=arguments.contenders,
        checks=arguments.checks,
        seed=arguments.seed,
        output=arguments.output or default_output("virtual", *(["quick"] if arguments.quick else [])),
    )

    def print_lines(contender: str, launches: Sequence[emulator.Launch]) -> None:
        if CONTENDERS[contender][0]:
            for table in tables(launches, arguments.lines):
                console.print(table)

    console.width = max(console.width, TABLE_WIDTH)
    report = Runner(settings, argv, console, print_lines if arguments.lines else None).run()
    show(report, console)
    console.print(f"written to {settings.output}", soft_wrap=True)
    broken = any(outcome.status in ("wrong", "failed") for cell in report.cells for outcome in cell.outcomes)
    return 1 if broken else 0
