"""Tables from a result file of `virtual`: rich on the terminal, Markdown for docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.virtual.counts import ChipRates, JobCounts
from bench.virtual.results import Cell, Report
from bench.virtual.work import Work

TABLE_WIDTH: Final = 155
_MISSING: Final = "–"
LAYER: Final = "layer"


@dataclass(frozen=True)
class Row:
    """One job of a cell, or all compared ones; a contender that has no launches for it is None."""

    cell: Cell
    job: str
    work: Work
    ours: JobCounts | None
    other: JobCounts | None

    @property
    def chip(self) -> ChipRates:
        """Of the cell."""
        return self.cell.chip

    def ratio(self, measure: Callable[[JobCounts], float]) -> float | None:
        """The yardstick's over moe_ext's; above 1 moe_ext asks for less."""
        if self.ours is None or self.other is None:
            return None
        mine, theirs = measure(self.ours), measure(self.other)
        return theirs / mine if mine else None

    def pair(self, text: Callable[[JobCounts], str]) -> str:
        """moe_ext / yardstick."""
        return " / ".join(_MISSING if side is None else text(side) for side in (self.ours, self.other))


# What is compared, the most telling first.
MEASURES: Final[dict[str, Callable[[Row], float | None]]] = {
    "floor": lambda row: row.ratio(lambda job: job.floor_seconds(row.chip)),
    "instr.": lambda row: row.ratio(lambda job: job.total.instructions),
    "sectors": lambda row: row.ratio(lambda job: job.total.sectors),
    "bytes": lambda row: row.ratio(lambda job: job.total.distinct_bytes),
}
_HEADINGS: Final = (
    *(f"{name} ×" for name in MEASURES),
    "floor µs",
    "instr./kMAC",
    "MMA issued",
    "bytes/formula",
    "sectors/ideal",
    "waves/ideal",
    "launches",
)


def layer_row(cell: Cell) -> Row:
    """The sum over the jobs that both contenders have."""
    jobs = cell.compared_jobs
    sides = [
        JobCounts.joined(outcome.jobs[job] for job in jobs) if (outcome := cell.of(ours)) else None
        for ours in (True, False)
    ]
    return Row(cell, LAYER, sum((cell.work[job] for job in jobs), Work(0, 0)), *sides)


def job_rows(cell: Cell) -> Iterator[Row]:
    """One row for each job that anyone has launches for."""
    for job, work in cell.work.items():
        sides = [outcome.jobs.get(job) if (outcome := cell.of(ours)) else None for ours in (True, False)]
        if any(sides):
            yield Row(cell, job, work, *sides)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else _MISSING


def _cells(row: Row) -> Iterator[str]:
    """In the order of `_HEADINGS`."""
    for measure in MEASURES.values():
        ratio = measure(row)
        yield _MISSING if ratio is None else f"{ratio:.2f}"
    useful = row.work.flops
    yield row.pair(lambda job: f"{1e6 * job.floor_seconds(row.chip):.3g}")
    yield row.pair(lambda job: _share(2000 * job.total.instructions, useful)) if useful else _MISSING
    yield row.pair(lambda job: _share(job.total.flops, useful)) if useful else _MISSING
    yield row.pair(lambda job: _share(job.total.distinct_bytes, row.work.num_bytes))
    yield row.pair(lambda job: _share(job.total.sectors, job.total.sectors_ideal))
    yield row.pair(lambda job: _share(job.total.wavefronts, job.total.wavefronts_ideal))
    yield row.pair(lambda job: str(job.total.launches))


def title(report: Report) -> str:
    """What ran, in one line."""
    triton = f", Triton {report.versions['triton']}" if report.versions.get("triton") else ""
    return f"moe_ext's CUDA kernels on the virtual GPU, bf16{triton}, {report.date[:10]}"


def notes(report: Report) -> Iterator[str]:
    """What a reader needs to know, one sentence or two at a time."""
    yield "Ratios (×): the yardstick's number over moe_ext's; above 1, moe_ext asks for less. Pairs: ours / yardstick."
    rates = {cell.chip.name: cell.chip for cell in report.cells}.values()
    chips = "; ".join(
        f"{c.name} {c.bytes_per_second / 1e9:.0f} GB/s and {c.bf16_flops / 1e12:.0f} TFLOP/s" for c in rates
    )
    yield (
        "Floor: for each launch the larger of distinct bytes over memory bandwidth and issued FLOPs over peak, "
        f"added up ({chips}). A bound from below on data-sheet rates, not a time."
    )
    yield (
        "Instr.: warp instructions of PTX without moves and polling; /kMAC: for 1000 useful multiply-adds. MMA "
        "issued: FLOPs given to the matrix units over useful ones. Sectors: 32-byte pieces asked of global memory; "
        "/ideal: over the bytes asked for. Bytes: distinct sectors that each launch touched; /formula: over the least "
        "that jobs cut this way must move. Waves: shared-memory wavefronts, over those without bank conflicts."
    )
    yield "A layer's row adds up the jobs that both have: the yardstick sorts on the host."
    shapes = {cell.shape["name"]: cell for cell in report.cells}.values()
    for cell in report.cells:
        if cell.chip == report.cells[0].chip:
            least = sum(work.num_bytes for work in cell.work.values())
            yield (
                f"{cell.shape['name']} {cell.phase}: the formula says {least / 1e6:.1f} MB, "
                f"{cell.gathers_missed_bytes / 1e6:.1f} MB when no gathered row is found in a cache."
            )
    for cell in shapes:
        s = cell.shape
        yield (
            f"{s['name']}: T={s['num_tokens']} H={s['hidden_size']} I={s['intermediate_size']} E={s['num_experts']} "
            f"K={s['top_k']}, for {cell.stands_for}: {cell.scaled}; the fullest expert has {cell.max_expert_load} rows."
        )
    errors = [outcome.worst_error for cell in report.cells for outcome in cell.outcomes if outcome.status == "ok"]
    if errors:
        yield f"Every result was checked against float64 before its counters were kept; worst error {max(errors):.1e}."
    yield from problems(report)


def problems(report: Report) -> Iterator[str]:
    """Who was not counted, and why."""
    where: dict[str, list[str]] = {}
    for cell in report.cells:
        for outcome in cell.outcomes:
            if outcome.status != "ok":
                what = f"{outcome.contender} {outcome.status}: {outcome.reason}"
                where.setdefault(what, []).append(cell.key)
    for what, keys in where.items():
        yield f"{what} ({', '.join(keys)})"


def rich_tables(report: Report) -> Iterator[Table]:
    """A table for each cell: its jobs, then the layer."""
    for cell in report.cells:
        table = Table(title=cell.key, box=box.SIMPLE_HEAD)
        table.add_column("job", no_wrap=True)
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in (*job_rows(cell), layer_row(cell)):
            texts = []
            for name, text in zip(_HEADINGS, _cells(row), strict=True):
                worse = name.endswith("×") and text != _MISSING and float(text) < 1
                texts.append(f"[red]{text}[/red]" if worse else escape(text))
            table.add_row(row.job, *texts, style="bold" if row.job == LAYER else None)
        yield table


def _markdown_table(first: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join((*first, *_HEADINGS)) + " |"
    yield "|" + " --- |" * len(first) + " ---: |" * len(_HEADINGS)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def markdown(report: Report) -> str:
    """The layers, the notes, and all jobs folded away."""
    layers = [
        (cell.chip.name, cell.shape["name"], cell.phase, *_cells(layer_row(cell)))
        for cell in report.cells
    ]  # fmt: skip
    jobs = [
        (cell.chip.name, cell.shape["name"], cell.phase, row.job, *_cells(row))
        for cell in report.cells
        for row in job_rows(cell)
    ]
    lines = [f"**{title(report)}**", "", *_markdown_table(("chip", "layer", "phase"), layers)]
    lines += ["", *(f"- {note}" for note in notes(report)), "", "<details><summary>Every job</summary>", ""]
    lines += [*_markdown_table(("chip", "layer", "phase", "job"), jobs), "", "</details>"]
    return "\n".join(lines)
