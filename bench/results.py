"""The JSON that `run` writes and everything else reads."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.check import TensorError
from bench.timing import Spread

FORMAT: Final = 1


@dataclass
class Outcome:
    """How one contender fared in one cell. status: ok | wrong | skipped | failed, with a reason unless ok."""

    contender: str
    ours: bool
    status: str
    reason: str | None = None
    errors: dict[str, TensorError] = field(default_factory=dict)
    saved_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def spread(self) -> Spread:
        """Of `seconds`."""
        return Spread.of(self.seconds)

    @property
    def worst_error(self) -> float:
        """The largest relative error of any tensor."""
        return max(error.relative for error in self.errors.values())


@dataclass
class Cell:
    """One shape, dtype and mode with the work it declares and everyone's outcome."""

    shape: dict[str, Any]
    dtype: str
    mode: str
    flops: int
    compulsory_bytes: int
    num_hit_experts: int
    max_expert_load: int
    bounds: dict[str, float]
    floor_seconds: float
    foreign_load: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Shape, dtype and mode in one word."""
        return f"{self.shape['name']}/{self.dtype}/{self.mode}"

    @property
    def timed(self) -> list[Outcome]:
        """Right and timed, the quickest median first."""
        return sorted((o for o in self.outcomes if o.status == "ok" and o.seconds), key=lambda o: o.spread.median)

    @property
    def ours(self) -> Outcome | None:
        """moe_ext itself, where it was timed; never one of its variants."""
        return next((o for o in self.timed if o.contender == "moe_ext"), None)

    @property
    def best_other(self) -> Outcome | None:
        """The quickest contender that isn't ours: measured against moe_ext where that was timed, else by its median."""
        others = [outcome for outcome in self.timed if not outcome.ours]
        return min(others, key=lambda o: ratio.median if (ratio := self.ratio_to(o)) else o.spread.median, default=None)

    def ratio_to(self, other: Outcome) -> Spread | None:
        """Speed of moe_ext over `other`: of the ratios of the times of each round."""
        if self.ours is None:
            return None
        return Spread.of([theirs / mine for theirs, mine in zip(other.seconds, self.ours.seconds, strict=True)])

    @property
    def ratio(self) -> Spread | None:
        """Speed of moe_ext over the best other contender; above 1 moe_ext is quicker."""
        return self.ratio_to(self.best_other) if self.best_other else None


@dataclass
class Report:
    """One run."""

    date: str
    command: str
    threads: int
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, Any]
    source: dict[str, Any]
    limits: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace `path` in one step, so that a run cut short leaves the cells it finished. Medians and ratios follow
        from the samples and are written for readers only."""
        content = {"format": FORMAT, **asdict(self)}
        for cell, written in zip(self.cells, content["cells"], strict=True):
            for outcome, entry in zip(cell.outcomes, written["outcomes"], strict=True):
                entry["spread"] = asdict(outcome.spread) if outcome.seconds else None
            written["best_other"] = cell.best_other.contender if cell.best_other else None
            written["ratio"] = asdict(cell.ratio) if cell.ratio else None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(path.suffix + ".part")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Report:
        """Raises ValueError where the file is of another format."""
        content = json.loads(path.read_text())
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a result file of format {FORMAT}")
        cells = []
        for cell in content.pop("cells"):
            del cell["best_other"], cell["ratio"]
            outcomes = []
            for outcome in cell.pop("outcomes"):
                del outcome["spread"]
                errors = {name: TensorError(**error) for name, error in outcome.pop("errors").items()}
                outcomes.append(Outcome(errors=errors, **outcome))
            cells.append(Cell(outcomes=outcomes, **cell))
        return cls(cells=cells, **content)
