"""Clusters: barriers, other blocks' shared memory, and copies and stores into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator

COPY, REDUCE, STORE, ATOMIC, MULTICAST = range(5)


@pytest.mark.parametrize("how", [COPY, REDUCE, STORE, ATOMIC, MULTICAST])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_send(load_cuda: Callable[..., Any], completion: str, how: int, blocks: int) -> None:
    for seed in range(3):
        kernel = load_cuda("bulk_copies", completion=completion, seed=seed)["send"]
        data = np.arange(2 * blocks * 32, dtype=np.uint32).reshape(2, blocks, 32)
        out = np.zeros_like(data)
        kernel(2 * blocks, 32, data, out, how, 0, cluster=blocks)
        if how == MULTICAST:
            expected = np.broadcast_to(data[:, :1], data.shape)
        else:
            expected = np.roll(data, 1, axis=1) + (1000 if how in (REDUCE, ATOMIC) else 0)
        assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("how", "bug", "kinds"),
    [
        (COPY, 1, {"async_too_early", "shared_race"}),
        (STORE, 1, {"async_too_early", "shared_race"}),
        (ATOMIC, 1, {"async_too_early", "shared_race"}),
        (MULTICAST, 1, {"async_too_early", "shared_race"}),
        (COPY, 2, {"async_too_early", "shared_race"}),
        (COPY, 3, {"shared_race", "mbarrier_misuse", "async_too_early", "missing_proxy_fence"}),
        (STORE, 3, {"shared_race", "mbarrier_misuse", "async_too_early"}),
        (COPY, 4, {"missing_proxy_fence"}),
        (REDUCE, 4, {"missing_proxy_fence"}),
    ],
)
def test_planted(load_cuda: Callable[..., Any], completion: str, how: int, bug: int, kinds: set[str]) -> None:
    for seed in range(3):
        kernel = load_cuda("bulk_copies", completion=completion, seed=seed)["send"]
        data = np.zeros((2, 32), np.uint32)
        with pytest.raises(emulator.Fault) as caught:
            kernel(2, 32, data, np.zeros_like(data), how, bug, cluster=2)
        assert caught.value.kind in kinds


@pytest.mark.parametrize("how", [0, 1])
def test_exchange(load_cuda: Callable[..., Any], how: int) -> None:
    for seed in range(6):
        kernel = load_cuda("bulk_copies", seed=seed)["exchange"]
        out = np.zeros((3, 4), np.uint32)
        kernel(12, 64, out, how, cluster=4)
        assert_array_equal(out, np.broadcast_to(np.array([3, 0, 1, 2]) * 21, out.shape))


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        (2, {"shared_race", "uninitialised_shared"}),
        (4, {"barrier_misuse"}),
        (5, {"barrier_misuse"}),
        (6, {"use_after_free"}),
    ],
)
def test_misused_barrier(load_cuda: Callable[..., Any], how: int, kinds: set[str]) -> None:
    for seed in range(4):
        kernel = load_cuda("bulk_copies", seed=seed)["exchange"]
        with pytest.raises(emulator.Fault) as caught:
            kernel(2, 64, np.zeros(2, np.uint32), how, cluster=2)
        assert caught.value.kind in kinds


def test_block_ends_while_others_read_it(load_cuda: Callable[..., Any]) -> None:
    kinds = set()
    for seed in range(20):
        try:
            load_cuda("bulk_copies", seed=seed)["exchange"](2, 64, np.zeros(2, np.uint32), 3, cluster=2)
        except emulator.Fault as fault:
            kinds.add(fault.kind)
    assert kinds == {"use_after_free"}


def test_remote_arrivals(load_cuda: Callable[..., Any]) -> None:
    for seed in range(4):
        kernel = load_cuda("bulk_copies", seed=seed)["remote_arrivals"]
        out = np.zeros(4, np.uint32)
        kernel(4, 32, out, 0, cluster=4)
        assert_array_equal(out, np.arange(5, 9))
        with pytest.raises(emulator.Fault) as caught:
            kernel(4, 32, out, 1, cluster=4)
        assert caught.value.kind in {"shared_race", "mbarrier_misuse"}


@pytest.mark.parametrize("blocks", [1, 2])
def test_exited_threads_count_as_arrived(load_cuda: Callable[..., Any], blocks: int) -> None:
    for seed in range(6):
        out = np.zeros((blocks, 64), np.uint32)
        load_cuda("bulk_copies", seed=seed)["early_exits"](blocks, 64, out, cluster=blocks)
        assert_array_equal(out, np.broadcast_to(np.where(np.arange(64) % 2, 0, np.arange(64)), out.shape))
