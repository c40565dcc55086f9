"""Runs the cells: for every chip and shape each contender does its phases, is checked, and its launches are kept."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from bench.check import BOUNDS, TensorError, compare, faults
from bench.machine import describe_run, without_folders
from bench.problem import Problem, make_problem, solve
from bench.virtual.contender import Contender, Phase, Recorder
from bench.virtual.counts import ChipRates
from bench.virtual.results import Cell, Outcome, Report
from bench.virtual.shapes import VirtualShape
from bench.virtual.work import jobs_of

if TYPE_CHECKING:
    import emulator

_DTYPE: Final = torch.bfloat16


def _moe_ext() -> Contender:
    from bench.virtual.moe_ext_layer import MoeExt

    return MoeExt()


def _triton() -> Contender:
    from bench.virtual.triton_layer import TritonYardstick

    return TritonYardstick()


# Contenders are made when they are run: one needs a library that was built, the other the package triton.
CONTENDERS: Final[dict[str, tuple[bool, Callable[[], Contender]]]] = {
    "moe_ext": (True, _moe_ext),
    "triton": (False, _triton),
}


@dataclass(frozen=True)
class Settings:
    """What to run and how."""

    chips: Sequence[str]
    shapes: Sequence[VirtualShape]
    phases: Sequence[str]
    contenders: Sequence[str]
    checks: bool
    seed: int
    output: Path


@dataclass(frozen=True)
class _Case:
    """A problem, logits for the job `route`, and the truth of every result by name."""

    problem: Problem
    router_logits: Tensor
    truths: dict[str, Tensor]

    @classmethod
    def of(cls, shape: VirtualShape, with_grads: bool, seed: int) -> _Case:
        problem = make_problem(shape.shape, _DTYPE, seed)
        logits = torch.randn(
            shape.shape.num_tokens, shape.router_experts, generator=torch.Generator().manual_seed(seed)
        )
        chosen = logits.double().topk(shape.shape.top_k)
        truth = solve(problem, with_grads)
        routing = {"topk_weights": chosen.values.softmax(-1).float(), "topk_ids": chosen.indices.float()}
        return cls(problem, logits, {"y": truth.y, **(truth.grads or {}), **routing})

    def errors(self, phase: Phase) -> dict[str, TensorError]:
        """By tensor."""
        return {name: compare(got.float(), self.truths[name]) for name, got in phase.results.items()}


class Runner:
    """One run; `run()` returns the report, which is also written after every cell."""

    def __init__(
        self,
        settings: Settings,
        arguments: Sequence[str],
        console: Console,
        on_launches: Callable[[str, Sequence[emulator.Launch]], None] | None = None,
    ) -> None:
        """`on_launches(contender, launches)` sees the full records of each contender on each chip and shape."""
        self._settings, self._arguments, self._console = settings, arguments, console
        self._on_launches = on_launches

    def run(self) -> Report:
        """Raises nothing for a contender that fails; its outcomes say so."""
        settings = self._settings
        report = Report(
            **describe_run(self._arguments),
            settings={"seed": settings.seed, "checks": settings.checks, "dtype": "bf16"},
        )
        report.versions["triton"] = _version("triton")
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        with progress:
            total = len(settings.shapes) * len(settings.chips) * len(settings.contenders)
            task = progress.add_task("", total=total)
            for shape in settings.shapes:
                progress.update(task, description=f"{shape.name}: tensors and truth")
                phases = [phase for phase in settings.phases if phase in shape.phases]
                case = _Case.of(shape, "backward" in phases, settings.seed)
                for chip in settings.chips:
                    cells = [self._cell(shape, chip, phase, case.problem.expert_load()) for phase in phases]
                    for name in settings.contenders:
                        progress.update(task, description=f"{chip} {shape.name}: {name}")
                        for cell, outcome in zip(cells, self._outcomes(name, cells, case), strict=True):
                            cell.outcomes.append(outcome)
                        progress.advance(task)
                    report.cells += cells
                    report.save(settings.output)
        return report

    def _cell(self, shape: VirtualShape, chip: str, phase: str, load: Tensor) -> Cell:
        hit, router_experts = int((load > 0).sum()), shape.router_experts
        missed = jobs_of(shape.shape, phase, hit, router_experts=router_experts, gathers_missed=True)
        return Cell(
            chip=ChipRates.of(chip),
            shape=asdict(shape.shape),
            stands_for=shape.stands_for,
            scaled=shape.scaled,
            phase=phase,
            max_expert_load=int(load.max()),
            work=jobs_of(shape.shape, phase, hit, router_experts=router_experts),
            gathers_missed_bytes=sum(work.num_bytes for work in missed.values()),
        )

    def _outcomes(self, name: str, cells: Sequence[Cell], case: _Case) -> list[Outcome]:
        """One for each cell, which differ in their phase."""
        import emulator

        ours, make = CONTENDERS[name]
        try:
            contender = make()
        except (ImportError, FileNotFoundError) as error:
            return [Outcome(name, ours, "skipped", without_folders(str(error))) for _ in cells]
        gpu = emulator.Gpu(cells[0].chip.name, seed=self._settings.seed, checks=self._settings.checks)
        try:
            with gpu, gpu.torch_memory(), torch.no_grad():
                recorder = Recorder(gpu)
                wanted = [cell.phase for cell in cells]
                phases = contender.run(recorder, case.problem.copy(), case.router_logits.clone(), wanted)
                errors = {phase: case.errors(found) for phase, found in phases.items()}
        except Exception as error:  # whatever a contender raises is its result
            reason = without_folders(f"{type(error).__name__}: {error}")
            return [Outcome(name, ours, "failed", reason) for _ in cells]
        if self._on_launches:
            self._on_launches(name, gpu.launches)
        outcomes = []
        for cell in cells:
            found = faults(errors[cell.phase], BOUNDS[_DTYPE])
            status = "wrong" if found else "ok"
            outcome = Outcome(name, ours, status, "; ".join(found) or None, errors[cell.phase])
            outcome.jobs = phases[cell.phase].jobs
            outcomes.append(outcome)
        return outcomes


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
