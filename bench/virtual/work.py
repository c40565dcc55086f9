"""What each job of a layer must do at least: FLOPs of its products, bytes it must move. Formulas, nothing measured.

Bytes are those between memory and chip when every kernel reads each byte once and writes each once, with the jobs cut
as SonicMoE (arXiv 2512.14080) cuts them: rows are gathered by the product that needs them, the activation and its
derivative are part of a product, and nothing is kept but x, the pre-activation z [R,2I] and indices. With b bytes an
element, RH = b*R*H, RI = b*R*I, TH = b*T*H and W = b*3*H*I*E these add up to

    inference  2 RH +  2 RI + 2 TH + W     (z is not written)
    forward    2 RH +  4 RI + 2 TH + W
    backward   2 RH + 10 RI + 4 TH + 2 W

when a gathered token comes from memory once. When each of its K rows is read from memory again, a gather costs RH and
not TH: `gathers_missed`. Index arrays and routing weights, about 1 % of this, are not in the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.shapes import Shape

PHASES: Final = ("inference", "forward", "backward")
ROUTE, PERMUTE, GATE_UP, DOWN, COMBINE = "route", "permute", "gate_up + act", "down", "combine"
RESTORE, ACT_BACKWARD, WGRAD_DOWN, WGRAD_GATE_UP = "restore indices", "d act", "wgrad down", "wgrad gate_up"
ROWS_OF_X, SUM_OF_X = "d rows", "d x"
JOBS: Final[dict[str, tuple[str, ...]]] = {
    "inference": (ROUTE, PERMUTE, GATE_UP, DOWN, COMBINE),
    "forward": (ROUTE, PERMUTE, GATE_UP, DOWN, COMBINE),
    "backward": (RESTORE, ACT_BACKWARD, WGRAD_DOWN, WGRAD_GATE_UP, ROWS_OF_X, SUM_OF_X),
}


@dataclass(frozen=True)
class Work:
    """A lower bound. Multiply-adds count twice."""

    flops: int
    num_bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.num_bytes + other.num_bytes)


def jobs_of(
    shape: Shape,
    phase: str,
    num_hit_experts: int | None = None,
    *,
    router_experts: int | None = None,
    itemsize: int = 2,
    gathers_missed: bool = False,
) -> dict[str, Work]:
    """The jobs of a phase in order. Weights of experts without rows are not read; their gradients are written. Of
    router_experts the router chooses, of as many as the shape has by default."""
    rows, tokens, hidden, inner = shape.num_rows, shape.num_tokens, shape.hidden_size, shape.intermediate_size
    experts = shape.num_experts
    rh, ri, th = (itemsize * n for n in (rows * hidden, rows * inner, tokens * hidden))
    matrix = itemsize * hidden * inner  # one of the three of an expert
    hit = matrix * (experts if num_hit_experts is None else num_hit_experts)
    every = matrix * experts
    product = 2 * rows * hidden * inner
    gather = rh if gathers_missed else th
    if phase == "backward":
        return {
            RESTORE: Work(0, 8 * rows),
            ACT_BACKWARD: Work(product, gather + 5 * ri + hit),
            WGRAD_DOWN: Work(product, gather + ri + every),
            WGRAD_GATE_UP: Work(2 * product, gather + 2 * ri + 2 * every),
            ROWS_OF_X: Work(2 * product, 2 * ri + 2 * hit + rh),
            SUM_OF_X: Work(0, rh + th),
        }
    kept = 2 * ri if phase == "forward" else 0
    return {
        ROUTE: Work(0, 4 * tokens * (router_experts or experts) + 8 * rows),
        PERMUTE: Work(0, 12 * rows + 4 * (experts + 1)),
        GATE_UP: Work(2 * product, gather + ri + kept + 2 * hit),
        DOWN: Work(product, ri + rh + hit),
        COMBINE: Work(0, rh + th),
    }


def layer_bytes(shape: Shape, phase: str, *, itemsize: int = 2, gathers_missed: bool = False) -> int:
    """The formulas above, with every expert hit: the jobs without those that only touch indices."""
    jobs = jobs_of(shape, phase, itemsize=itemsize, gathers_missed=gathers_missed)
    return sum(work.num_bytes for name, work in jobs.items() if name not in (ROUTE, PERMUTE, RESTORE))
