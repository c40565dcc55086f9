"""The JSON that `virtual` writes and everything else reads."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.check import TensorError
from bench.virtual.counts import ChipRates, JobCounts
from bench.virtual.work import Work

FORMAT: Final = "virtual 1"


@dataclass
class Outcome:
    """How one contender fared in one cell. status: ok | wrong | skipped | failed, with a reason unless ok."""

    contender: str
    ours: bool
    status: str
    reason: str | None = None
    errors: dict[str, TensorError] = field(default_factory=dict)
    jobs: dict[str, JobCounts] = field(default_factory=dict)

    @property
    def worst_error(self) -> float:
        """The largest relative error of any tensor."""
        return max(error.relative for error in self.errors.values())


@dataclass
class Cell:
    """One chip, shape and phase."""

    chip: ChipRates
    shape: dict[str, Any]
    stands_for: str
    scaled: str
    phase: str
    max_expert_load: int
    work: dict[str, Work]
    gathers_missed_bytes: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Chip, shape and phase in one word."""
        return f"{self.chip.name}/{self.shape['name']}/{self.phase}"

    def of(self, ours: bool) -> Outcome | None:
        """Who was right and counted: moe_ext, or the yardstick."""
        return next((o for o in self.outcomes if o.ours == ours and o.status == "ok"), None)

    @property
    def compared_jobs(self) -> list[str]:
        """The jobs that everyone who was counted has launches for, in order: what a layer's totals are of."""
        counted = [outcome for outcome in self.outcomes if outcome.status == "ok"]
        return [job for job in self.work if all(outcome.jobs.get(job) for outcome in counted)]


@dataclass
class Report:
    """One run."""

    date: str
    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, Any]
    source: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace `path` in one step, so that a run cut short leaves the cells it finished."""
        content = {"format": FORMAT, **asdict(self)}
        for cell, written in zip(self.cells, content["cells"], strict=True):
            for outcome, entry in zip(cell.outcomes, written["outcomes"], strict=True):
                entry["jobs"] = {name: job.to_dict() for name, job in outcome.jobs.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(path.suffix + ".part")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether the file is a result of `virtual`."""
        try:
            content = json.loads(path.read_text())
        except ValueError:
            return False
        return isinstance(content, dict) and content.get("format") == FORMAT

    @classmethod
    def load(cls, path: Path) -> Report:
        """Raises ValueError where the file is of another format."""
        content = json.loads(path.read_text())
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a result file of format {FORMAT!r}")
        cells = []
        for cell in content.pop("cells"):
            outcomes = []
            for outcome in cell.pop("outcomes"):
                errors = {name: TensorError(**error) for name, error in outcome.pop("errors").items()}
                jobs = {name: JobCounts.from_dict(job) for name, job in outcome.pop("jobs").items()}
                outcomes.append(Outcome(errors=errors, jobs=jobs, **outcome))
            chip = ChipRates(**cell.pop("chip"))
            job_work = {name: Work(**entry) for name, entry in cell.pop("work").items()}
            cells.append(Cell(chip=chip, work=job_work, outcomes=outcomes, **cell))
        return cls(cells=cells, **content)
