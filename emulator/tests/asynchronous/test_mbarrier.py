"""mbarrier objects: phases, states, counts, and misuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator


def test_phases(load_cuda: Callable[..., Any]) -> None:
    for seed in range(6):
        kernel = load_cuda("small_copies", seed=seed)["phases"]
        out = np.zeros(65, np.int32)
        kernel(1, 64, out, 5)
        t = np.arange(64)
        assert_array_equal(out[:64], sum(k * 64 + (t + 17) % 64 for k in range(5)))
        assert out[64] == 7


def test_drops(load_cuda: Callable[..., Any]) -> None:
    for seed in range(4):
        kernel = load_cuda("small_copies", seed=seed)["drops"]
        out = np.zeros(64, np.uint32)
        kernel(1, 64, out)
        assert_array_equal(out, np.arange(64))


def test_pending_counts(load_cuda: Callable[..., Any]) -> None:
    kernel = load_cuda("small_copies")["pending"]
    out = np.zeros(8, np.uint32)
    kernel(1, 32, out)
    assert_array_equal(out, [10, 9, 7, 4, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("bug", "kinds"),
    [
        (0, {"mbarrier_misuse"}),  # not initialised
        (1, {"mbarrier_misuse"}),  # a count of 0
        (2, {"mbarrier_misuse"}),  # a count of 2^20
        (3, {"shared_race", "mbarrier_misuse"}),  # used with no barrier after the initialisation
        (4, {"mbarrier_misuse"}),  # initialised twice
        (5, {"mbarrier_misuse"}),  # more arrivals than wanted
        (6, {"mbarrier_misuse"}),  # overwritten
        (7, {"mbarrier_misuse"}),  # the state of another
        (8, {"mbarrier_misuse"}),  # a state two phases old
        (9, {"mbarrier_misuse"}),  # no state
        (10, {"mbarrier_misuse"}),  # noComplete completes
        (11, {"mbarrier_misuse"}),  # used after inval
        (12, {"bad_argument"}),
        (13, {"misaligned"}),
    ],
)
def test_misuse(load_cuda: Callable[..., Any], bug: int, kinds: set[str]) -> None:
    for seed in range(3):
        kernel = load_cuda("small_copies", seed=seed)["misuse"]
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 64, np.zeros(1, np.uint32), bug)
        assert caught.value.kind in kinds
