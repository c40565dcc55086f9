"""cp.async.bulk and cp.reduce.async.bulk: places and sizes, groups, reductions, and planted mistakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import emulator


@pytest.mark.parametrize("checks", [False, True])
def test_ring(load_cuda: Callable[..., Any], completion: str, checks: bool) -> None:
    for seed in range(4):
        kernel = load_cuda("bulk_copies", completion=completion, seed=seed, checks=checks)["ring"]
        data = np.random.default_rng(seed).integers(0, 1000, (7, 64), dtype=np.int32)
        out = np.zeros_like(data)
        kernel(1, 96, data, out, 7, 0)
        assert_array_equal(out, data * 2)


@pytest.mark.parametrize(
    ("bug", "kinds"),
    [
        (1, {"async_too_early", "shared_race", "uninitialised_shared"}),
        (2, {"async_too_early", "shared_race", "mbarrier_misuse"}),
        (3, {"missing_proxy_fence"}),
        (4, {"async_too_early"}),
        (5, {"async_not_awaited"}),
        (6, {"deadlock"}),
        (7, {"async_not_awaited"}),
    ],
)
def test_planted(load_cuda: Callable[..., Any], completion: str, bug: int, kinds: set[str]) -> None:
    for seed in range(4):
        kernel = load_cuda("bulk_copies", completion=completion, seed=seed)["ring"]
        data = np.ones((7, 64), np.int32)
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 96, data, np.zeros_like(data), 7, bug)
        assert caught.value.kind in kinds


@pytest.mark.parametrize("how", [0, 1])
def test_load(load_cuda: Callable[..., Any], completion: str, how: int) -> None:
    kernel = load_cuda("bulk_copies", completion=completion)["load"]
    rng = np.random.default_rng(how)
    for size, skew in [(16, 0), (48, 16), (2000, 2064), (4096, 0)]:
        data = kernel.gpu.array(rng.integers(0, 256, size, dtype=np.uint8))
        out = np.zeros(size, np.uint8)
        launch = kernel(1, 32, data, out, size, skew, how)
        assert_array_equal(out, data)
        assert launch.counters.async_bytes == size


@pytest.mark.parametrize(
    ("offset", "size", "skew", "kind"),
    [
        (0, 24, 0, "bad_argument"),
        (8, 16, 0, "misaligned"),
        (0, 16, 8, "misaligned"),
        (0, 4096, 2048, "out_of_bounds"),
        (1024, 1040, 0, "out_of_bounds"),
    ],
)
def test_bad_load(load_cuda: Callable[..., Any], offset: int, size: int, skew: int, kind: str) -> None:
    kernel = load_cuda("bulk_copies")["load"]
    data = kernel.gpu.zeros(5120 if kind == "out_of_bounds" and skew else 2048, np.uint8)
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 32, data[offset:], np.zeros(4096, np.uint8), size, skew, 0)
    assert caught.value.kind == kind


def test_unwritten_source(load_cuda: Callable[..., Any]) -> None:
    kernel = load_cuda("bulk_copies")["load"]
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 32, kernel.gpu.empty(64, np.uint8), np.zeros(64, np.uint8), 64, 0, 0)
    assert caught.value.kind == "uninitialised_global"


@pytest.mark.parametrize("left", range(4))
def test_store_groups(load_cuda: Callable[..., Any], completion: str, left: int) -> None:
    kernel = load_cuda("bulk_copies", completion=completion, checks=False)["store_groups"]
    out, seen = np.zeros((4, 32), np.int32), np.full(4, -1, np.int32)
    kernel(1, 32, out, seen, left)
    assert_array_equal(out, np.arange(1, 5)[:, None] * np.ones(32))
    assert_array_equal(seen[: 4 - left], np.arange(1, 5 - left))
    if completion == "latest":
        assert not seen[4 - left :].any()
    if completion == "eager":
        assert seen.all()
    kernel.gpu.checks = True
    if left == 0:
        kernel(1, 32, out, seen, left)
    else:
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 32, out, seen, left)
        assert caught.value.kind == "async_too_early"


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, b: np.where(old >= b, 0, old + 1),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - 1),
}
TYPES = {
    "u32": torch.uint32, "s32": torch.int32, "u64": torch.uint64, "s64": torch.int64, "b32": torch.int32,
    "b64": torch.int64, "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip
REDUCTIONS = [
    *(f"add_{t}" for t in ["u32", "s32", "u64", "f16", "bf16", "f32", "f64"]),
    *(f"{op}_{t}" for op in ("min", "max") for t in ["u32", "s32", "u64", "s64", "f16", "bf16"]),
    *(f"{op}_{t}" for op in ("and", "or", "xor") for t in ("b32", "b64")),
    "inc_u32",
    "dec_u32",
]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(load_cuda: Callable[..., Any], name: str) -> None:
    operation, kind = name.split("_")
    kernel = load_cuda("bulk_copies")[name]
    rng = np.random.default_rng(REDUCTIONS.index(name))
    low = 0 if kind[0] in "ub" else -20
    blocks = 1 if operation in ("inc", "dec") else 3
    values, target = (torch.tensor(rng.integers(low, 20, shape)).to(TYPES[kind]) for shape in ((blocks, 48), (48,)))

    def numbers(tensor: torch.Tensor) -> np.ndarray:
        return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()

    expected = reduce(FUNCTIONS[operation], numbers(values), numbers(target))
    raw = values.view(torch.uint8).reshape(blocks, -1)
    kernel(blocks, 32, raw, target, raw.shape[1])
    assert_array_equal(numbers(target), expected)


def test_small_floats_round_once(load_cuda: Callable[..., Any]) -> None:
    for name, dtype in (("add_bf16", torch.bfloat16), ("add_f16", torch.float16)):
        kernel = load_cuda("bulk_copies")[name]
        generator = torch.Generator().manual_seed(5)
        values, target = (torch.randn(256, generator=generator).to(dtype) for _ in range(2))
        expected = (values.double() + target.double()).to(dtype)
        kernel(1, 32, values.view(torch.uint8), target, 512)
        assert_array_equal(target.float().numpy(), expected.float().numpy())
