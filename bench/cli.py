"""The command line: `run` measures time, `parts` that of a layer's parts, `scaling` how it grows, `limits` the machine,
and `virtual` counts on the virtual GPU; all write JSON, which `table` and `plot` show."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from bench import mallocs, scaling
from bench.contenders import CONTENDERS
from bench.limits import command as limits_command
from bench.limits.measure import MachineLimits
from bench.machine import ISAS
from bench.parts import command as parts_command
from bench.plot import draw
from bench.report import TABLE_WIDTH, markdown, notes, rich_table, summaries, update_block
from bench.restart import needed_environment, restart_with
from bench.results import Report, default_output, kind_of
from bench.roofline import draw as draw_roofline
from bench.runner import DTYPES, Runner, Settings
from bench.shapes import MODES, SHAPES, TINY, Shape, find_shape
from bench.virtual import command as virtual_command
from bench.virtual.plot import draw as draw_virtual
from bench.virtual.report import markdown as virtual_markdown
from bench.virtual.results import Report as VirtualReport


def _shape(name: str) -> Shape:
    try:
        return find_shape(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return integer


def make_parser() -> argparse.ArgumentParser:
    """The parser, for `main` and for tests."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    contenders = "; ".join(f"{c.name}: {c.what}{'' if c.default else ' (not by default)'}" for c in CONTENDERS.values())
    shapes = "; ".join(
        f"{s.name} T={s.num_tokens} H={s.hidden_size} I={s.intermediate_size} E={s.num_experts} K={s.top_k}"
        for s in SHAPES.values()
    )
    run = commands.add_parser("run", help="measure", epilog=f"Contenders. {contenders}. Shapes. {shapes}.")
    run.add_argument("--shapes", nargs="+", type=_shape, metavar="SHAPE", help="default: all; see below")
    run.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    run.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    run.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="CONTENDER", help="see below")
    run.add_argument("--repeats", type=_at_least(5), default=7, help="rounds, at least 5; short calls get more")
    run.add_argument("--threads", type=_at_least(1), default=torch.get_num_threads())
    run.add_argument(
        "--isa",
        choices=ISAS,
        help="restart with moe_ext, PyTorch, oneDNN and MKL held to this instruction set; who needs more sits out",
    )
    run.add_argument(
        "--byte-limit",
        type=float,
        default=4.0,
        metavar="GIB",
        help="leave out, with a message, who would copy or zero-fill more than this per call (default: %(default)s)",
    )
    run.add_argument(
        "--tuned-malloc",
        action="store_true",
        help="restart with glibc told to use huge pages and to keep freed memory, which helps all contenders",
    )
    run.add_argument(
        "--both-mallocs",
        action="store_true",
        help="run with the system's allocator settings and with --tuned-malloc; the lower of the two ratios counts",
    )
    run.add_argument("--quick", action="store_true", help="see the machinery run: a tiny shape unless --shapes says")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--output", type=Path, help="default: bench/results/<date>-cpu-<threads>t.json")
    run.set_defaults(action=_run)

    limits_command.add_parser(commands)
    parts_command.add_parser(commands)
    scaling.add_parser(commands)
    virtual_command.add_parser(commands)

    table = commands.add_parser("table", help="show a result file")
    table.add_argument("file", type=Path)
    table.add_argument("--markdown", action="store_true", help="Markdown instead of a terminal table")
    table.add_argument("--update", type=Path, metavar="README", help="replace the table in this file")
    table.set_defaults(action=_table)

    plot = commands.add_parser("plot", help="draw a result file")
    plot.add_argument("file", type=Path)
    plot.add_argument("--roofline", action="store_true", help="of a file of `run`: FLOP/s against FLOP/byte")
    plot.add_argument("--output", type=Path, help="default: the same name, ending in .png or -roofline.png")
    plot.set_defaults(action=_plot)
    return parser


def _tagged(arguments: argparse.Namespace) -> list[tuple[str, bool]]:
    return [
        ("tuned-malloc", arguments.tuned_malloc),
        ("both-mallocs", arguments.both_mallocs),
        ("quick", arguments.quick),
    ]


def _default_output(arguments: argparse.Namespace) -> Path:
    tags = [tag for tag, used in _tagged(arguments) if used] + ([arguments.isa] if arguments.isa else [])
    return default_output("cpu", f"{arguments.threads}t", *tags)


def _show(report: Report, console: Console) -> None:
    console.width = max(console.width, TABLE_WIDTH)
    console.print(rich_table(report))
    for note in (*summaries([cell] for cell in report.cells), *notes(report)):
        console.print(f"• {note}", soft_wrap=True, highlight=False, markup=False)


def _run(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    if arguments.both_mallocs:
        if arguments.tuned_malloc:
            raise ValueError("--both-mallocs runs with --tuned-malloc and without")
        both, status = mallocs.run(argv, arguments.output or _default_output(arguments), console)
        mallocs.show(both, console)
        return status
    restart_with(needed_environment(arguments.tuned_malloc, arguments.isa), argv)
    settings = Settings(
        shapes=arguments.shapes or ([TINY] if arguments.quick else list(SHAPES.values())),
        dtypes=arguments.dtypes,
        modes=arguments.modes,
        contenders=arguments.contenders or [c.name for c in CONTENDERS.values() if c.default],
        repeats=arguments.repeats,
        threads=arguments.threads,
        byte_limit=int(arguments.byte_limit * 2**30),
        quick=arguments.quick,
        seed=arguments.seed,
        output=arguments.output or _default_output(arguments),
        isa=arguments.isa,
    )
    report = Runner(settings, argv, console).run()
    _show(report, console)
    console.print(f"written to {settings.output}", soft_wrap=True)
    broken = any(o.ours and o.status in ("wrong", "failed") for cell in report.cells for o in cell.outcomes)
    return 1 if broken else 0


# What is in a file with that "kind": how to load it, show it and draw it.
_KINDS: Final[dict[str, tuple[Any, Any, Any]]] = {
    mallocs.BothMallocs.KIND: (mallocs.BothMallocs.load, mallocs.show, mallocs.draw),
    MachineLimits.KIND: (MachineLimits.load, limits_command.show, limits_command.draw),
    parts_command.PartsReport.KIND: (parts_command.PartsReport.load, parts_command.show, None),
    scaling.Scaling.KIND: (scaling.Scaling.load, scaling.show, scaling.draw),
}


def _table(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    kind = kind_of(arguments.file)
    if kind in _KINDS:
        load, show, _ = _KINDS[kind]
        if not (arguments.markdown or arguments.update):
            show(load(arguments.file), console)
            return 0
        if kind != mallocs.BothMallocs.KIND:
            raise ValueError(f"{arguments.file} has tables for the terminal only")
    virtual = VirtualReport.is_one(arguments.file)
    if kind == mallocs.BothMallocs.KIND:
        text = mallocs.markdown(mallocs.BothMallocs.load(arguments.file))
    elif virtual:
        text = virtual_markdown(VirtualReport.load(arguments.file))
    else:
        text = markdown(Report.load(arguments.file))
    if arguments.update:
        changed = update_block(arguments.update, text)
        console.print(f"{arguments.update}: {'updated' if changed else 'unchanged'}", soft_wrap=True)
    elif arguments.markdown:
        print(text)
    elif virtual:
        virtual_command.show(VirtualReport.load(arguments.file), console)
    else:
        _show(Report.load(arguments.file), console)
    return 0


def _plot(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    path = arguments.output or arguments.file.with_suffix(".png")
    if arguments.roofline:
        path = arguments.output or arguments.file.with_name(f"{arguments.file.stem}-roofline.png")
        draw_roofline(Report.load(arguments.file), path)
        console.print(f"written to {path}", soft_wrap=True)
        return 0
    kind = kind_of(arguments.file)
    if kind in _KINDS:
        load, _, draw_kind = _KINDS[kind]
        if draw_kind is None:
            raise ValueError(f"there is no picture of {kind}")
        draw_kind(load(arguments.file), path)
    elif VirtualReport.is_one(arguments.file):
        draw_virtual(VirtualReport.load(arguments.file), path)
    else:
        draw(Report.load(arguments.file), path)
    console.print(f"written to {path}", soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where moe_ext failed or was wrong, 2 for what the user got wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [argument[2:] if argument in ("--virtual", "--limits") else argument for argument in argv]
    arguments = make_parser().parse_args(argv)
    console = Console()
    try:
        return int(arguments.action(arguments, argv, console))
    except (OSError, ValueError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        return 2
