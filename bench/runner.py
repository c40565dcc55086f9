"""Runs the cells: make the problem, solve it, check everyone, time those who are right."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.check import BOUNDS, evaluate, faults
from bench.contender import WEIGHTS, Contender, exclusion
from bench.contenders import CONTENDERS
from bench.limits.floor import Limits, floors, measure_limits
from bench.machine import ForeignLoad, describe_run, without_folders
from bench.memory import bytes_kept_by, peak_bytes, saved_bytes
from bench.problem import Layer, Problem, Truth, make_problem, solve
from bench.report import cell_lines
from bench.results import Cell, Outcome, Report
from bench.shapes import TINY, Shape
from bench.timing import make_step, time_interleaved

DTYPES: Final[dict[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """What to run and how."""

    shapes: Sequence[Shape]
    dtypes: Sequence[str]
    modes: Sequence[str]
    contenders: Sequence[str]
    repeats: int
    threads: int
    byte_limit: int
    quick: bool
    seed: int
    output: Path
    isa: str | None = None


def _warm_up(contenders: Sequence[Contender]) -> None:
    """Libraries that start when they are first used would count as the memory of the first contender. What they leave
    behind is no garbage: the collections to come needn't look at it."""
    for contender in contenders:
        contender.missing()
    for dtype in DTYPES.values():
        problem = make_problem(TINY, dtype)
        layer = CONTENDERS["torch_loop"].build(problem)
        torch.autograd.grad(layer(problem.x), list(problem.leaves.values()), problem.grad_y)
    gc.collect()
    gc.freeze()


class Runner:
    """One run; `run()` returns the report, which is also written after every cell."""

    def __init__(self, settings: Settings, arguments: Sequence[str], console: Console) -> None:
        self._settings = settings
        self._console = console
        self._arguments = arguments
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def run(self) -> Report:
        """Raises nothing for a contender that fails; its outcome says so."""
        settings = self._settings
        torch.set_num_threads(settings.threads)
        with self._console.status("measuring the machine's limits"):
            limits = measure_limits(settings.threads, settings.isa, settings.quick)
        if limits.why_not:
            self._console.print(f"[dim]limits are those of PyTorch: {limits.why_not}", soft_wrap=True)
        report = Report(
            **describe_run(self._arguments),
            threads=settings.threads,
            settings={
                "repeats": settings.repeats,
                "seed": settings.seed,
                "byte_limit": settings.byte_limit,
                "quick": settings.quick,
            },
            limits=asdict(limits),
        )
        contenders = [CONTENDERS[name] for name in settings.contenders]
        _warm_up(contenders)
        with self._progress:
            for shape in settings.shapes:
                modes = [mode for mode in settings.modes if mode == "fwd" or shape.training]
                if len(modes) < len(settings.modes):
                    self._console.print(f"[dim]{shape.name}: forward only, nobody trains on so few tokens")
                for dtype in settings.dtypes:
                    if modes:
                        self._run_problem(shape, dtype, modes, contenders, limits, report)
                        if not settings.quick:
                            limits = self._measure_limits_again(limits, report)
        gc.unfreeze()
        return report

    def _measure_limits_again(self, limits: Limits, report: Report) -> Limits:
        """The best so far, for all cells: a machine that is slow for a while has no other limits."""
        task = self._progress.add_task("measuring the machine's limits again", total=None)
        limits = limits.best_of(measure_limits(self._settings.threads, self._settings.isa, self._settings.quick))
        self._progress.remove_task(task)
        report.limits = asdict(limits)
        for cell in report.cells:
            cell.floors = floors(cell.dtype, cell.flops, cell.compulsory_bytes, limits)
        report.save(self._settings.output)
        return limits

    def _run_problem(
        self,
        shape: Shape,
        dtype: str,
        modes: Sequence[str],
        contenders: Sequence[Contender],
        limits: Limits,
        report: Report,
    ) -> None:
        """The cells that share a problem: its modes."""
        task = self._progress.add_task(f"{shape.name} {dtype}: tensors and truth", total=None)
        problem = make_problem(shape, DTYPES[dtype], self._settings.seed)
        truth = solve(problem, with_grads="fwdbwd" in modes)
        self._progress.remove_task(task)
        load = problem.expert_load()
        num_hit_experts = int((load > 0).sum())
        for mode in modes:
            flops = shape.flops(mode)
            itemsize = problem.x.element_size()
            num_bytes = {
                weights: shape.compulsory_bytes(mode, num_hit_experts, itemsize, 1 if weights == "int8" else itemsize)
                for weights in WEIGHTS
            }
            cell = Cell(
                shape=asdict(shape),
                dtype=dtype,
                mode=mode,
                flops=flops,
                compulsory_bytes=num_bytes,
                num_hit_experts=num_hit_experts,
                max_expert_load=int(load.max()),
                bounds=asdict(BOUNDS[DTYPES[dtype]]),
                floors=floors(dtype, flops, num_bytes, limits),
            )
            self._run_cell(cell, problem, Truth(truth.y, truth.grads if mode == "fwdbwd" else None), contenders)
            report.cells.append(cell)
            report.save(self._settings.output)
            for line in cell_lines(cell):
                self._console.print(line, soft_wrap=True)

    def _run_cell(self, cell: Cell, problem: Problem, truth: Truth, contenders: Sequence[Contender]) -> None:
        settings = self._settings
        task = self._progress.add_task(f"{cell.key}: check", total=len(contenders))
        layers: dict[str, Layer] = {}
        for contender in contenders:
            outcome, layer = self._check(contender, problem, truth, cell.mode)
            cell.outcomes.append(outcome)
            if layer is not None:
                layers[contender.name] = layer
            self._progress.advance(task)
        self._progress.remove_task(task)
        if not layers:
            return

        task = self._progress.add_task(f"{cell.key}: time", total=None)
        load = ForeignLoad()
        seconds = time_interleaved(
            {name: make_step(layer, problem, cell.mode) for name, layer in layers.items()},
            settings.repeats,
            settings.seed,
            lambda done, total: self._progress.update(task, completed=done, total=total),
            {contender.name: contender.pause for contender in contenders},
        )
        cell.foreign_load = load.share()
        self._progress.remove_task(task)
        for outcome in cell.outcomes:
            outcome.seconds = seconds.get(outcome.contender, [])

    def _check(self, contender: Contender, problem: Problem, truth: Truth, mode: str) -> tuple[Outcome, Layer | None]:
        """The outcome so far and, if the contender may be timed, its layer."""
        outcome = Outcome(contender.name, contender.ours, "skipped", weights=contender.weights)
        outcome.bounds = asdict(contender.bounds) if contender.bounds else None
        outcome.reason = exclusion(contender, problem, mode, self._settings.byte_limit, self._settings.isa)
        if outcome.reason:
            return outcome, None
        try:
            layer, kept = bytes_kept_by(partial(contender.build, problem))
            outcome.packed_bytes = kept if contender.weights != "plain" else None
            outcome.peak_bytes = peak_bytes(make_step(layer, problem, mode))
            outcome.errors = evaluate(layer, problem, truth)
            if mode == "fwdbwd":
                outcome.saved_bytes = saved_bytes(layer, problem)
        except Exception as error:  # a contender is foreign code: whatever it raises is its result
            outcome.status, outcome.reason = "failed", without_folders(f"{type(error).__name__}: {error}")
            return outcome, None
        found = faults(outcome.errors, contender.bounds or BOUNDS[problem.dtype])
        if found:
            outcome.status, outcome.reason = "wrong", "; ".join(found)
            return outcome, None
        outcome.status = "ok"
        return outcome, layer
