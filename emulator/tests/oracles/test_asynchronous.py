"""libcu++'s barriers, pipelines, asynchronous copies and atomic references against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@ARCHES
@SEEDS
@pytest.mark.parametrize(("kernel", "threads"), [("per_thread", 128), ("of_block", 128), ("with_roles", 256)])
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_pipeline(load_cuda, arch, seed, kernel, threads, rows):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.random.default_rng(1).integers(-100, 100, (rows, 128)).astype(np.float32)
    out = gpu.empty(128)
    module[f"pipeline_{kernel}"](1, threads, gpu.array(x), out, rows)
    np.testing.assert_array_equal(out, x.sum(0))


@ARCHES
@SEEDS
@pytest.mark.parametrize("count", [64, 200])
def test_copy_with_barrier(load_cuda, arch, seed, count):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.random.default_rng(2).standard_normal((3, count, 4)).astype(np.float32)
    out = gpu.empty(x.shape)
    module["barrier_copy"](1, 64, gpu.array(x), out, count, shared_bytes=16 * count)
    np.testing.assert_array_equal(out, x[:, ::-1])


@ARCHES
@SEEDS
def test_barrier_phases(load_cuda, arch, seed):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.random.default_rng(3).integers(-100, 100, 128).astype(np.int32)
    out = gpu.empty(64, np.int32)
    module["barrier_phases"](1, 128, gpu.array(x), out)
    np.testing.assert_array_equal(out, (2 * x + x[::-1])[:64][::-1])


@ARCHES
@SEEDS
@pytest.mark.parametrize("rounds", [1, 4, 5])
def test_barrier_completion(load_cuda, arch, seed, rounds):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.arange(64, dtype=np.int32)
    out = gpu.empty(64, np.int32)
    module["barrier_completion"](1, 64, gpu.array(x), out, rounds)
    np.testing.assert_array_equal(out, x[::-1] if rounds % 2 else x)


@ARCHES
@SEEDS
def test_atomic_integers(load_cuda, arch, seed):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.random.default_rng(4).integers(-(2**31), 2**31, 192, dtype=np.int64).astype(np.int32)
    words = gpu.array(np.array([7, 0, -1, 0, 0, -(2**31), 2**31 - 1, 1], np.int32))
    seen = gpu.empty(192, np.int32)
    module["atomic_integers"](3, 64, gpu.array(x), words, seen)
    np.testing.assert_array_equal(
        words.view(np.uint32),
        np.array(
            [
                7 + 192, -x.sum(dtype=np.int64), np.bitwise_and.reduce(x), np.bitwise_or.reduce(x),
                np.bitwise_xor.reduce(x), x.max(), x.min(), np.multiply.reduce(x | 1, dtype=np.int32),
            ]
        ).astype(np.uint32),
    )  # fmt: skip
    np.testing.assert_array_equal(np.sort(seen), 7 + np.arange(192))


@ARCHES
@SEEDS
def test_atomic_others(load_cuda, arch, seed):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = (np.random.default_rng(5).integers(-100, 100, 128) / 4).astype(np.float32)
    real, wide_real, wide = gpu.zeros(1), gpu.zeros(1, np.float64), gpu.zeros(1, np.uint64)
    bytes_, halves = gpu.zeros(8, np.uint8), gpu.zeros(4, np.uint16)
    module["atomic_others"](2, 64, gpu.array(x), real, wide_real, wide, bytes_, halves)
    assert real[0] == wide_real[0] == x.sum(dtype=np.float64)
    assert wide[0] == 128 << 32
    np.testing.assert_array_equal(bytes_, np.full(8, 16))
    np.testing.assert_array_equal(halves, np.full(4, 0xFFFF))


@ARCHES
@SEEDS
def test_release_and_acquire(load_cuda, arch, seed):
    gpu, module = load_cuda("asynchronous", arch, seed)
    x = np.arange(64, dtype=np.int32)
    out = gpu.empty((3, 64), np.int32)
    module["flag"](4, 64, gpu.array(x), gpu.empty(64, np.int32), gpu.zeros(1, np.int32), out)
    np.testing.assert_array_equal(out, np.broadcast_to(3 * x, (3, 64)))


@ARCHES
@SEEDS
def test_semaphore(load_cuda, arch, seed):
    gpu, module = load_cuda("asynchronous", arch, seed)
    counter = gpu.empty(1, np.int32)
    module["semaphore"](1, 128, counter)
    assert counter[0] == 16
