"""cp.async: sizes, zeros, groups, arrivals, and the mistakes that kernels make with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator


@pytest.mark.parametrize(("name", "size"), [("copy_4", 4), ("copy_8", 8), ("copy_16", 16), ("copy_16_bypass", 16)])
def test_sizes(load_cuda: Callable[..., Any], completion: str, name: str, size: int) -> None:
    kernel = load_cuda("small_copies", completion=completion)[name]
    rng = np.random.default_rng(size)
    data = rng.integers(1, 256, (64, size), dtype=np.uint8)
    valid = rng.integers(0, size + 1, 64, dtype=np.int32)
    out = np.zeros_like(data)
    kernel(1, 64, data, valid, out, 0)
    assert_array_equal(out, data)
    kernel(1, 64, data, valid, out, 1)
    assert_array_equal(out, np.where(np.arange(size) < valid[:, None], data, 0))
    kept = np.arange(64, dtype=np.int32) % 3
    kernel(1, 64, data, kept, out, 2)
    assert_array_equal(out, np.where((kept == 0)[:, None], 0, data))


def test_nothing_is_read_of_a_source_without_bytes(load_cuda: Callable[..., Any]) -> None:
    kernel = load_cuda("small_copies")["copy_16"]
    out = np.ones((64, 16), np.uint8)
    kernel(1, 64, kernel.gpu.empty(4, np.uint8), np.zeros(64, np.int32), out, 1)
    assert not out.any()
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 64, kernel.gpu.zeros(63 * 16, np.uint8), np.full(64, 4, np.int32), out, 1)
    assert caught.value.kind == "out_of_bounds"
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 64, kernel.gpu.zeros(64 * 16, np.uint8), np.full(64, 17, np.int32), out, 1)
    assert caught.value.kind == "bad_argument"


@pytest.mark.parametrize("left", range(5))
def test_groups(load_cuda: Callable[..., Any], completion: str, left: int) -> None:
    kernel = load_cuda("small_copies", completion=completion, seed=left)["groups"]
    data = np.arange(256, dtype=np.int32).reshape(4, 64)
    for read in range(4):
        out = np.full(64, -1, np.int32)
        if read < 4 - left:
            kernel(1, 64, data, out, left, read)
            mask = (np.arange(64) % 2 == 0) | (read != 2)
            assert_array_equal(out, np.where(mask, data[read], -1))
        else:
            with pytest.raises(emulator.Fault) as caught:
                kernel(1, 64, data, out, left, read)
            assert caught.value.kind == "async_too_early"


@pytest.mark.parametrize(
    ("bug", "kinds"),
    [
        (1, {"async_too_early"}),
        (2, {"shared_race", "async_too_early", "uninitialised_shared"}),
        (3, {"async_too_early"}),
    ],
)
def test_planted(load_cuda: Callable[..., Any], completion: str, bug: int, kinds: set[str]) -> None:
    for seed in range(4):
        kernel = load_cuda("small_copies", completion=completion, seed=seed)["planted"]
        data, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
        kernel(1, 64, data, out, 0)
        assert_array_equal(out, np.arange(64) ^ 33)
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 64, data, out, bug)
        assert caught.value.kind in kinds


def test_bytes_are_taken_as_late_as_they_may(load_cuda: Callable[..., Any]) -> None:
    kernel = load_cuda("small_copies", completion="latest", checks=False)["planted"]
    data, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    kernel(1, 64, data, out, 4)
    assert_array_equal(out, np.full(64, -1))
    kernel.gpu.completion = "eager"
    data = np.arange(64, dtype=np.int32)
    kernel(1, 64, data, out, 4)
    assert_array_equal(out, np.arange(64) ^ 33)


@pytest.mark.parametrize("how", [0, 1])
@pytest.mark.parametrize("checks", [False, True])
def test_arrival(load_cuda: Callable[..., Any], completion: str, how: int, checks: bool) -> None:
    for seed in range(4):
        kernel = load_cuda("small_copies", completion=completion, seed=seed, checks=checks)["copy_arrive"]
        data = np.arange(9 * 32, dtype=np.int32).reshape(9, 32)
        out = np.zeros_like(data)
        kernel(1, 64, data, out, 9, how)
        assert_array_equal(out, data[:, np.arange(32) ^ 1])


def test_arrival_not_waited_for(load_cuda: Callable[..., Any], completion: str) -> None:
    for seed in range(4):
        kernel = load_cuda("small_copies", completion=completion, seed=seed)["copy_arrive"]
        data = np.zeros((9, 32), np.int32)
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 64, data, np.zeros_like(data), 9, 2)
        assert caught.value.kind in {"async_too_early", "shared_race", "uninitialised_shared"}
