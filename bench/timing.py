"""Interleaved timing: in every round each contender is called once, in an order shuffled anew.

A machine that slows down for a second then slows all contenders of that round, and the ratio of two times of the same
round stands although neither time does.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from bench.problem import Layer, Problem

# Short calls get more rounds, until the timed calls of a cell fill this long (at most ten times the rounds asked for).
_MIN_SECONDS_PER_CELL: Final = 3.0
_MAX_ROUND_FACTOR: Final = 10

Step = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median, minimum and quartiles of a sample."""

    median: float
    minimum: float
    quartile_1: float
    quartile_3: float

    @classmethod
    def of(cls, sample: list[float]) -> Spread:
        """Of a sample that is not empty."""
        minimum, quartile_1, median, quartile_3 = (float(q) for q in np.quantile(sample, (0, 0.25, 0.5, 0.75)))
        return cls(median, minimum, quartile_1, quartile_3)


def make_step(layer: Layer, problem: Problem, mode: str) -> Step:
    """What one timed call does. Results are returned, so that freeing them (gradients above all) isn't timed."""
    if mode == "fwd":

        def forward() -> object:
            with torch.no_grad():
                return layer(problem.x)

        return forward

    leaves = list(problem.leaves.values())

    def forward_backward() -> object:
        y = layer(problem.x)
        return y, torch.autograd.grad(y, leaves, problem.grad_y)

    return forward_backward


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _time_once(step: Step, pause: float) -> float:
    start = time.perf_counter()
    result = step()
    elapsed = time.perf_counter() - start
    del result
    if pause:
        time.sleep(pause)
    return elapsed


def time_interleaved(
    steps: Mapping[str, Step],
    repeats: int,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
    pauses: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round; entry r of every list belongs to round r.

    One more call of each comes first: it warms up, isn't counted, and tells how many rounds to take.
    `on_round(done, total)` is called before the first round and after each. `pauses`: seconds to wait after a step,
    which are nobody's time.
    """
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in order}
    pauses = pauses or {}
    with _no_garbage_collection():
        one_round = sum(_time_once(steps[name], pauses.get(name, 0.0)) for name in order)
        wanted = math.ceil(_MIN_SECONDS_PER_CELL / one_round)
        rounds = min(max(repeats, wanted), _MAX_ROUND_FACTOR * repeats)
        if on_round:
            on_round(0, rounds)
        for done in range(1, rounds + 1):
            shuffle(order)
            for name in order:
                seconds[name].append(_time_once(steps[name], pauses.get(name, 0.0)))
            if on_round:
                on_round(done, rounds)
    return seconds
