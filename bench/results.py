"""The JSON that `run` writes and everything else reads."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.check import TensorError
from bench.contender import WEIGHTS
from bench.limits.floor import Floor
from bench.machine import REPOSITORY
from bench.timing import Spread

FORMAT: Final = 2


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def default_output(*tags: str) -> Path:
    """Where a result goes whose place nobody named."""
    return REPOSITORY / "bench" / "results" / ("-".join((f"{datetime.date.today():%Y-%m-%d}", *tags)) + ".json")


def kind_of(path: Path) -> str | None:
    """What a result file says it is; those of `run` say nothing. Raises ValueError where it is no JSON."""
    content = json.loads(path.read_text())
    return content.get("kind") if isinstance(content, dict) else None


@dataclass
class Outcome:
    """How one contender fared in one cell. status: ok | wrong | skipped | failed, with a reason unless ok. `weights`:
    what it computes on, see `contender.WEIGHTS`; `bounds`: its own, where those of the cell don't hold for it. Bytes:
    saved for backward, the most that a call takes, kept beside the weights of the model; None where unknown."""

    contender: str
    ours: bool
    status: str
    reason: str | None = None
    weights: str = "plain"
    bounds: dict[str, float] | None = None
    errors: dict[str, TensorError] = field(default_factory=dict)
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    packed_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def spread(self) -> Spread:
        """Of `seconds`."""
        return Spread.of(self.seconds)

    @property
    def worst_error(self) -> float:
        """The largest relative error of any tensor."""
        return max(error.relative for error in self.errors.values())


@dataclass(frozen=True)
class Comparison:
    """moe_ext and the best other contender on weights of one kind. `ratio`: moe_ext's speed over that contender, of the
    times of each round; above 1 moe_ext is quicker."""

    weights: str
    ours: Outcome | None
    best_other: Outcome | None
    ratio: Spread | None


@dataclass
class Cell:
    """One shape, dtype and mode with the work it declares and everyone's outcome. `floors` and
    `compulsory_bytes`: the least time it can take here and the least traffic, for each kind of weights."""

    shape: dict[str, Any]
    dtype: str
    mode: str
    flops: int
    compulsory_bytes: dict[str, int]
    num_hit_experts: int
    max_expert_load: int
    bounds: dict[str, float]
    floors: dict[str, Floor]
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

    def share_of_limit(self, outcome: Outcome) -> float:
        """The floor over the median time."""
        return self.floors[outcome.weights].seconds / outcome.spread.median

    def ours(self, weights: str = "plain") -> Outcome | None:
        """moe_ext on weights of that kind, where it was timed; never one of its variants."""
        return next((o for o in self.timed if o.contender == WEIGHTS[weights]), None)

    def ratio_to(self, other: Outcome) -> Spread | None:
        """Speed of moe_ext over `other`, both on weights of the same kind: of the ratios of the times of each round."""
        ours = self.ours(other.weights)
        if ours is None:
            return None
        return Spread.of([theirs / mine for theirs, mine in zip(other.seconds, ours.seconds, strict=True)])

    def compared(self, weights: str = "plain") -> Comparison:
        """The best other contender is measured against moe_ext where that was timed, else by its median."""
        others = [o for o in self.timed if not o.ours and o.weights == weights]
        best = min(others, key=lambda o: ratio.median if (ratio := self.ratio_to(o)) else o.spread.median, default=None)
        return Comparison(weights, self.ours(weights), best, self.ratio_to(best) if best else None)

    @property
    def comparisons(self) -> list[Comparison]:
        """One for each kind of weights that somebody was timed on, and one for plain weights in any case."""
        used = {outcome.weights for outcome in self.timed} | {"plain"}
        return [self.compared(weights) for weights in WEIGHTS if weights in used]


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

    def content(self) -> dict[str, Any]:
        """What is saved. Medians and ratios follow from the samples and are written for readers only."""
        content = {"format": FORMAT, **asdict(self)}
        for cell, written in zip(self.cells, content["cells"], strict=True):
            for outcome, entry in zip(cell.outcomes, written["outcomes"], strict=True):
                entry["spread"] = asdict(outcome.spread) if outcome.seconds else None
            written["comparisons"] = {
                compared.weights: {
                    "ours": compared.ours.contender if compared.ours else None,
                    "best_other": compared.best_other.contender if compared.best_other else None,
                    "ratio": asdict(compared.ratio) if compared.ratio else None,
                }
                for compared in cell.comparisons
            }
        return content

    def save(self, path: Path) -> None:
        """Replace `path` in one step, so that a run cut short leaves the cells it finished."""
        write_json(path, self.content())

    @classmethod
    def load(cls, path: Path) -> Report:
        """Raises ValueError where the file is of another format."""
        try:
            return cls.of(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path} is not a result file of format {FORMAT}") from error

    @classmethod
    def of(cls, content: dict[str, Any]) -> Report:
        """Of what `content` returned. Raises ValueError where it is of another format."""
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        cells = []
        for cell in content.pop("cells"):
            del cell["comparisons"]
            outcomes = []
            for outcome in cell.pop("outcomes"):
                del outcome["spread"]
                errors = {name: TensorError(**error) for name, error in outcome.pop("errors").items()}
                outcomes.append(Outcome(errors=errors, **outcome))
            floors = {weights: Floor(**floor) for weights, floor in cell.pop("floors").items()}
            cells.append(Cell(outcomes=outcomes, floors=floors, **cell))
        return cls(cells=cells, **content)
