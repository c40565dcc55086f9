"""`python -m bench scaling`: does the cost of a layer grow as its work does? Time against the number of tokens and
against the number of experts, and a verdict on each doubling.

A doubling from n to 2n has the step s(n) = t(2n) / t(n), t being the first quartile of the times (a machine that is
slow now and then is slow in the upper ones). The smooth curve's step there is the geometric middle of the steps of the
nearest two doublings on either side, exp(median(log s)) of up to four, or the step of the machine's limit (the larger
of FLOPs over the peak and bytes over the bandwidth) where that is larger: at the ends of the axis, and where memory
gives way to arithmetic, the work itself bends. The excess of a step is s over that; a cliff is an excess above 1.5. A
jump that stays, and one slow point, both show as one such step. All sizes take turns in every round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any, ClassVar, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.contenders import CONTENDERS
from bench.limits.floor import measure_limits
from bench.problem import Problem, make_problem
from bench.runner import DTYPES
from bench.shapes import MODES, Shape
from bench.timed_run import TimedRun, add_arguments, output_of
from bench.timing import Spread, make_step, time_interleaved

ALLOWED_EXCESS: Final = 1.5
_NEIGHBOURS: Final = 2
_COLOURS: Final = {
    ("bf16", "fwd"): "#2a6fbb",
    ("bf16", "fwdbwd"): "#123b6d",
    ("fp32", "fwd"): "#e39a3b",
    ("fp32", "fwdbwd"): "#a85f11",
}


def _log_steps(seconds: Sequence[float]) -> list[float]:
    return [log(b / a) for a, b in pairwise(seconds)]


def excesses(seconds: Sequence[float], floor_seconds: Sequence[float]) -> list[float]:
    """Of each step between sizes that follow one another, at least three sizes; see the module."""
    steps, floor_steps = _log_steps(seconds), _log_steps(floor_seconds)
    if len(steps) < 2:
        raise ValueError("a curve needs at least three sizes")
    found = []
    for index, (step, floor_step) in enumerate(zip(steps, floor_steps, strict=True)):
        near = steps[max(0, index - _NEIGHBOURS) : index] + steps[index + 1 : index + 1 + _NEIGHBOURS]
        found.append(exp(step - max(statistics.median(near), floor_step)))
    return found


@dataclass
class Series:
    """Times of one layer along one axis ("tokens" or "experts"): `seconds[i]` are those of `sizes[i]`."""

    axis: str
    dtype: str
    mode: str
    shape: dict[str, Any]
    sizes: list[int]
    seconds: list[list[float]]
    floor_seconds: list[float]

    @property
    def spreads(self) -> list[Spread]:
        """Of each size."""
        return [Spread.of(sample) for sample in self.seconds]

    @property
    def excesses(self) -> list[float]:
        """Of the steps between the sizes."""
        return excesses([spread.quartile_1 for spread in self.spreads], self.floor_seconds)

    @property
    def verdict(self) -> str:
        """In words: the worst step, and whether it is a cliff."""
        worst = max(self.excesses)
        where = self.excesses.index(worst)
        text = f"largest step over the smooth curve {worst:.2f}×, {self.sizes[where]} to {self.sizes[where + 1]}"
        return f"{'smooth' if worst <= ALLOWED_EXCESS else 'CLIFF'}: {text}"


@dataclass
class Scaling(TimedRun):
    """One run."""

    KIND: ClassVar[str] = "scaling"
    contender: str
    series: list[Series] = field(default_factory=list)

    @property
    def smooth(self) -> bool:
        """Whether there is no cliff."""
        return all(max(series.excesses) <= ALLOWED_EXCESS for series in self.series)

    def save(self, path: Path) -> None:
        """Excesses and verdicts follow from the times and are written for readers only."""
        content = asdict(self)
        for series, entry in zip(self.series, content["series"], strict=True):
            entry |= {"excesses": series.excesses, "verdict": series.verdict}
        self.write(path, content)

    @classmethod
    def load(cls, path: Path) -> Scaling:
        """From a file whose "kind" is KIND."""
        content = cls.read(path)
        series = []
        for entry in content.pop("series"):
            del entry["excesses"], entry["verdict"]
            series.append(Series(**entry))
        return cls(series=series, **content)


def _part(problem: Problem, axis: str, size: int) -> Problem:
    """The problem on its first tokens or with its first experts, in the same memory."""
    if axis == "tokens":
        x = problem.x.detach()[:size].requires_grad_()
        return replace(problem, shape=replace(problem.shape, num_tokens=size), x=x, grad_y=problem.grad_y[:size])
    weights = {
        name: nn.Parameter(getattr(problem, name).detach()[:size]) for name in ("w_router", "w_gate_up", "w_down")
    }
    return replace(problem, shape=replace(problem.shape, num_experts=size), **weights)


def measure(result: Scaling, arguments: argparse.Namespace, on_series: Callable[[str], None], console: Console) -> None:
    """Appends a series for each dtype, mode and axis to `result`."""
    limits = measure_limits(arguments.threads, quick=arguments.quick)
    result.limits = asdict(limits)
    hidden, inner, top_k = arguments.layer
    axes = {"tokens": arguments.tokens, "experts": arguments.experts}
    for dtype in arguments.dtypes:
        for axis, sizes in axes.items():
            on_series(f"{axis} {dtype}: tensors")
            num_tokens = max(sizes) if axis == "tokens" else arguments.at_tokens
            num_experts = max(sizes) if axis == "experts" else arguments.at_experts
            whole = make_problem(Shape(axis, num_tokens, hidden, inner, num_experts, top_k), DTYPES[dtype])
            parts = {size: _part(whole, axis, size) for size in sizes}
            for mode in arguments.modes:
                on_series(f"{axis} {dtype} {mode}")
                build = CONTENDERS[arguments.contender].build
                steps = {str(size): make_step(build(part), part, mode) for size, part in parts.items()}
                seconds = time_interleaved(steps, arguments.repeats)
                floors = []
                for part in parts.values():
                    hit = int((part.expert_load() > 0).sum())
                    num_bytes = part.shape.compulsory_bytes(mode, hit, part.x.element_size())
                    floors.append(limits.floor(dtype, part.shape.flops(mode), num_bytes).seconds)
                series = Series(axis, dtype, mode, asdict(whole.shape), list(sizes), list(seconds.values()), floors)
                result.series.append(series)
                console.print(f"[bold]{axis} {dtype} {mode}[/bold] {series.verdict}")


def draw(result: Scaling, path: Path) -> None:
    """Write a PNG to `path`: a panel for each axis."""
    names = list(dict.fromkeys(series.axis for series in result.series))
    figure, panels = plt.subplots(1, len(names), figsize=(1 + 5.5 * len(names), 5), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        own = [series for series in result.series if series.axis == name]
        for series in own:
            colour = _COLOURS[series.dtype, series.mode]
            middle = [spread.median * 1e3 for spread in series.spreads]
            whiskers = [
                [(s.median - s.quartile_1) * 1e3 for s in series.spreads],
                [(s.quartile_3 - s.median) * 1e3 for s in series.spreads],
            ]
            label = f"{series.dtype} {series.mode}"
            axes.errorbar(series.sizes, middle, whiskers, marker="o", markersize=4, color=colour, label=label)
            axes.plot(series.sizes, [s * 1e3 for s in series.floor_seconds], ":", color=colour, linewidth=1)
            for index, excess in enumerate(series.excesses):
                if excess > ALLOWED_EXCESS:
                    axes.plot(
                        series.sizes[index : index + 2], middle[index : index + 2], color="#d11111", linewidth=4,
                        alpha=0.5, zorder=0,
                    )  # fmt: skip
        shape = own[0].shape
        fixed = f"E={shape['num_experts']}" if name == "tokens" else f"T={shape['num_tokens']}"
        axes.set_title(
            f"{fixed} H={shape['hidden_size']} I={shape['intermediate_size']} K={shape['top_k']}", fontsize=10
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(f"number of {name}")
        axes.set_ylabel("ms (median, quartiles; dotted: the machine's limit)")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result.title}, {result.contender}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(result: Scaling, console: Console) -> None:
    """A table for each series, with its verdict."""
    console.print(f"{result.title}, {result.contender}", style="bold")
    for series in result.series:
        table = Table(title=f"{series.axis} {series.dtype} {series.mode}: {series.verdict}", box=box.SIMPLE_HEAD)
        for heading in (series.axis, "ms (median)", "first quartile", "of limit", "step over smooth"):
            table.add_column(heading, justify="right", no_wrap=True)
        for size, spread, floor, excess in zip(
            series.sizes, series.spreads, series.floor_seconds, [None, *series.excesses], strict=True
        ):
            style = "red" if excess and excess > ALLOWED_EXCESS else ""
            table.add_row(
                str(size),
                f"{spread.median * 1e3:.3f}",
                f"{spread.quartile_1 * 1e3:.3f}",
                f"{floor / spread.median:.0%}",
                f"{excess:.2f}×" if excess else "",
                style=style,
            )
        console.print(table)


def add_parser(commands: Any) -> None:
    """The subcommand `scaling`."""
    parser = commands.add_parser("scaling", help="time against tokens and experts: is there a cliff?", epilog=__doc__)
    powers = [1 << shift for shift in range(15)]
    parser.add_argument("--tokens", nargs="+", type=int, default=powers, metavar="T", help="default: 1 to 16384")
    parser.add_argument("--experts", nargs="+", type=int, default=powers[3:10], metavar="E", help="default: 8 to 512")
    parser.add_argument("--at-experts", type=int, default=64, metavar="E", help="while tokens grow")
    parser.add_argument("--at-tokens", type=int, default=2048, metavar="T", help="while experts grow")
    parser.add_argument(
        "--layer", nargs=3, type=int, default=(1024, 512, 8), metavar=("H", "I", "K"), help="default: 1024 512 8"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--contender", choices=CONTENDERS, default="moe_ext", metavar="CONTENDER")
    add_arguments(parser, Scaling.KIND, dtypes=["bf16"], repeats=9, also=", with a PNG beside it")
    parser.set_defaults(action=_run)


def _run(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    missing = CONTENDERS[arguments.contender].missing()
    if missing:
        raise ValueError(missing)
    if min(arguments.experts) < arguments.layer[2]:
        raise ValueError("--experts must not be fewer than K")
    result = Scaling(**Scaling.head(arguments, argv), contender=arguments.contender)
    with console.status("measuring") as status:
        measure(result, arguments, status.update, console)
    output = output_of(arguments, Scaling.KIND)
    result.save(output)
    draw(result, output.with_suffix(".png"))
    show(result, console)
    console.print(f"written to {output} and {output.with_suffix('.png').name}", soft_wrap=True)
    return 0 if result.smooth else 1
