"""Tables from a result file: rich on the terminal, Markdown for a README."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.contender import WEIGHTS
from bench.machine import DISTRIBUTIONS, counted_threads
from bench.results import Cell, Comparison, Outcome, Report
from bench.timing import Spread

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
# The terminal table needs this many columns; narrower, it would cut numbers.
TABLE_WIDTH: Final = 165
_MISSING: Final = "–"
PASSES: Final = {"fwd": "forward", "fwdbwd": "fwd + bwd"}
HEADINGS: Final = (
    "layer",
    "dtype",
    "pass",
    "weights",
    "speed-up",
    "best other",
    "ms",
    "of limit",
    "saved MiB",
    "peak MiB",
    "error",
)


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _speed_up(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}× ({ratio.quartile_1:.2f}–{ratio.quartile_3:.2f})" if ratio else _MISSING


def _mebibytes(num_bytes: int | None) -> str:
    return _MISSING if num_bytes is None else f"{num_bytes / 2**20:.0f}"


def _median(outcome: Outcome) -> str:
    return _milliseconds(outcome.spread.median)


def _median_and_spread(outcome: Outcome) -> str:
    spread = outcome.spread
    quartiles = f"{_milliseconds(spread.quartile_1)}–{_milliseconds(spread.quartile_3)}"
    return f"{_milliseconds(spread.median)} (min {_milliseconds(spread.minimum)}, {quartiles})"


def _row(cell: Cell, compared: Comparison, time: Callable[[Outcome], str]) -> tuple[str, ...]:
    """Cells of a table row in the order of `HEADINGS`; pairs are moe_ext / best other."""

    def pair(text: Callable[[Outcome], str]) -> str:
        return " / ".join(text(outcome) if outcome else _MISSING for outcome in (compared.ours, compared.best_other))

    return (
        cell.shape["name"],
        cell.dtype,
        PASSES[cell.mode],
        compared.weights,
        _speed_up(compared.ratio),
        compared.best_other.contender if compared.best_other else _MISSING,
        pair(time),
        f"{pair(lambda outcome: f'{cell.share_of_limit(outcome):.0%}')} {cell.floors[compared.weights].limit}",
        pair(lambda outcome: _mebibytes(outcome.saved_bytes)) if cell.mode == "fwdbwd" else "",
        pair(lambda outcome: _mebibytes(outcome.peak_bytes)),
        pair(lambda outcome: f"{outcome.worst_error:.1e}"),
    )


def cell_lines(cell: Cell) -> Iterator[str]:
    """What `run` prints when a cell is done: everyone's time, the quickest first, then who was left out and why."""
    loaded = ""
    if cell.foreign_load is not None and cell.foreign_load > 0.05:
        loaded = f"  [yellow]{cell.foreign_load:.0%} of the CPU went to other processes[/yellow]"
    yield f"[bold]{cell.key}[/bold]{loaded}"
    for outcome in cell.timed:
        limit = cell.floors[outcome.weights].limit
        line = (
            f"  {outcome.contender:<18} {_median_and_spread(outcome)} ms in {len(outcome.seconds)} rounds,"
            f" {cell.share_of_limit(outcome):.0%} of {limit} limit, error {outcome.worst_error:.1e}"
        )
        if outcome.saved_bytes is not None:
            line += f", saves {_mebibytes(outcome.saved_bytes)} MiB"
        if outcome.peak_bytes is not None:
            line += f", takes {_mebibytes(outcome.peak_bytes)} MiB"
        if outcome.packed_bytes is not None:
            line += f", keeps {_mebibytes(outcome.packed_bytes)} MiB"
        ratio = cell.ratio_to(outcome)
        if ratio and not outcome.ours:
            line += f"; {WEIGHTS[outcome.weights]} {ratio.median:.2f}×"
        yield f"[green]{line}[/green]" if outcome.ours else line
    for outcome in cell.outcomes:
        if outcome.status != "ok":
            colour = "dim" if outcome.status == "skipped" else "red"
            yield f"  [{colour}]{outcome.contender:<18} {outcome.status}: {escape(outcome.reason or '')}[/{colour}]"


def title(report: Report) -> str:
    """Machine, threads, versions and day in one line."""
    isa = report.versions.get("moe_ext_isa")
    return (
        f"{report.machine['cpu']}, {counted_threads(report.threads)}, "
        f"PyTorch {report.versions['torch']}, moe_ext {f'on {isa}' if isa else 'not installed'}, {report.date[:10]}"
    )


def _allocator(report: Report) -> str:
    if report.machine["malloc_tuned"]:
        return "Allocator: glibc told to use huge pages and to keep freed memory, for all contenders."
    environment = report.machine["environment"]
    settings = ", ".join(f"{key}={value}" for key, value in environment.items()) or "the system's defaults"
    return f"Allocator and threading: {settings}."


def _limits(limits: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{name} {rate / 1e9:.0f} GFLOP/s ({limits['flops_measured_with'][name]})"
        for name, rate in limits["flops_per_second"].items()
    )
    bandwidth = f"{limits['bytes_per_second'] / 1e9:.1f} GB/s ({limits['bytes_measured_with']})"
    text = (
        f"Of limit: share of the larger of FLOPs / {rates} and compulsory bytes / {bandwidth}, all measured in this "
        "run, and which of the two it is. float32 counts as float32: a kernel that computes it from bfloat16 products "
        "can pass 100 %."
    )
    if limits["why_not"]:
        text += f" The rates are PyTorch's, not the machine's, and can be passed too: {limits['why_not']}."
    return text


def summaries(groups: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """One line for each dtype and pass: moe_ext's speed over every contender, geometric mean over the cells and the
    least of them. A group has the cells of one key, of one process each; the lowest ratio counts."""
    ratios: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for group in groups:
        for cell in group:
            for outcome in cell.timed:
                ratio = None if outcome.ours else cell.ratio_to(outcome)
                if ratio:
                    of_pass = ratios.setdefault((cell.dtype, cell.mode), {})
                    of_cells = of_pass.setdefault(outcome.contender, {})
                    name = cell.shape["name"]
                    of_cells[name] = min(ratio.median, of_cells.get(name, math.inf))
    for (dtype, mode), contenders in ratios.items():
        texts = []
        for contender, of_cells in contenders.items():
            worst = min(of_cells, key=lambda name: of_cells[name])
            mean = statistics.geometric_mean(of_cells.values())
            texts.append(f"{contender} {mean:.2f}× (least {of_cells[worst]:.2f}×, {worst})")
        yield (f"{dtype} {PASSES[mode]}, moe_ext over each other, geometric mean of the cells: {', '.join(texts)}.")


def notes(report: Report) -> Iterator[str]:
    """What a reader needs to know to trust the numbers, one sentence or two at a time."""
    yield (
        "Speed-up: time of another contender / time of moe_ext, both of the same round in one process; median over the "
        "rounds (quartiles), above 1 moe_ext is quicker. The best other contender is the one for which this is lowest. "
        "Pairs are moe_ext / best other."
    )
    yield (
        "Weights: plain are those of the model as they lie; packed are a copy in an order of the contender's, made "
        "before anything is timed, and int8 such a copy rounded to int8 (other numerics: it is compared with its like "
        "only)."
    )
    others = dict.fromkeys(outcome.contender for cell in report.cells for outcome in cell.timed if not outcome.ours)
    versions = [f"PyTorch {report.versions['torch']}"]
    versions += [f"{name} {report.versions[name]}" for name in DISTRIBUTIONS if report.versions.get(name)]
    yield f"Others timed: {', '.join(others) or 'none'} ({', '.join(versions)})."
    yield _limits(report.limits)
    yield "Saved: bytes that autograd keeps for the backward pass, without x and the weights."
    yield (
        "Peak: the most by which the process grows while a call runs, its results (gradients of all weights too) and "
        "whatever a contender keeps between calls included, packed weights not; pages, measured by the kernel."
    )
    packed = {o.contender: o.packed_bytes for cell in report.cells for o in cell.timed if o.packed_bytes is not None}
    if packed:
        kept = ", ".join(f"{name} {_mebibytes(size)} MiB" for name, size in packed.items())
        yield f"Copies of the weights, kept beside those of the model, in the last cell of each: {kept}."
    bounds = {cell.dtype: cell.bounds for cell in report.cells}
    limits_text = "; ".join(
        f"{dtype} {bound['output']:g} (y), {bound['grad']:g} (gradients), {bound['tile']:g} (any 16×16 tile)"
        for dtype, bound in bounds.items()
    )
    yield (
        "Error: the largest relative error of y and of all gradients against float64. A contender above the bound is "
        f"wrong and not timed: {limits_text}."
    )
    own = {o.contender: o.bounds for cell in report.cells for o in cell.outcomes if o.bounds}
    if own:
        text = "; ".join(f"{name} {b['output']:g} (y), {b['tile']:g} (tile)" for name, b in own.items())
        yield f"Coarser by design, with bounds of their own: {text}."
    yield _allocator(report)
    loads = [cell.foreign_load for cell in report.cells if cell.foreign_load is not None]
    if loads and max(loads) > 0.05:
        yield f"Up to {max(loads):.0%} of the CPU went to other processes while a cell was timed."
    for cell in report.cells:
        for outcome in cell.outcomes:
            if outcome.status in ("wrong", "failed"):
                yield f"{cell.key}: {outcome.contender} {outcome.status}: {outcome.reason}"


# A table row and the ratio that decides its colour.
Row = tuple[tuple[str, ...], Spread | None]


def table_row(cell: Cell, compared: Comparison, spread: bool) -> Row:
    """In the order of HEADINGS; with the spread of the times or their medians alone."""
    return _row(cell, compared, _median_and_spread if spread else _median), compared.ratio


def _rows(report: Report, spread: bool) -> Iterator[Row]:
    for cell in report.cells:
        for compared in cell.comparisons:
            yield table_row(cell, compared, spread)


def render_rich(heading: str, headings: Sequence[str], rows: Iterable[Row]) -> Table:
    """A terminal table; speed-ups are green or red."""
    table = Table(title=heading, box=box.SIMPLE_HEAD)
    for name in headings:
        table.add_column(name, no_wrap=True)
    place = headings.index("speed-up")
    for cells, ratio in rows:
        row = list(cells)
        if ratio is not None:
            colour = "green" if ratio.median >= 1 else "red"
            row[place] = f"[{colour}]{row[place]}[/{colour}]"
        table.add_row(*row)
    return table


def render_markdown(heading: str, headings: Sequence[str], rows: Iterable[Row], remarks: Iterable[str]) -> str:
    """A Markdown table with speed-ups in bold, and the remarks below."""
    lines = [f"**{heading}**", "", "| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    place = headings.index("speed-up")
    for cells, ratio in rows:
        row = list(cells)
        row[place] = f"**{row[place]}**" if ratio else row[place]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)])


def rich_table(report: Report) -> Table:
    """A row for each cell and kind of weights."""
    return render_rich(title(report), HEADINGS, _rows(report, spread=False))


def markdown(report: Report) -> str:
    """The same table, with the spread of the times, and the notes."""
    remarks = (*summaries([cell] for cell in report.cells), *notes(report))
    return render_markdown(title(report), HEADINGS, _rows(report, spread=True), remarks)


def update_block(path: Path, content: str) -> bool:
    """Put `content` between the markers in `path`; whether that changed anything. Raises ValueError without markers."""
    text = path.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{path} has no {START} ... {END} block")
    updated = f"{before}{START}\n{content}\n{END}{after}"
    path.write_text(updated)
    return updated != text
