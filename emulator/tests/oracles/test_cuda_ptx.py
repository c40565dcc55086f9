"""libcu++'s wrappers of Hopper's instructions against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@SEEDS
@pytest.mark.parametrize("count", [4, 256, 1000])
def test_bulk_copy(load_cuda, seed, count):
    gpu, module = load_cuda("cuda_ptx", 90, seed)
    x = np.random.default_rng(1).integers(-1000, 1000, (3, count)).astype(np.int32)
    out, total = gpu.empty(x.shape, np.int32), gpu.zeros(count, np.int32)
    module["bulk_copy"](3, 64, gpu.array(x), out, total, count, shared_bytes=4 * count)
    expected = 2 * x + np.arange(count)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(total, expected.sum(0))


@SEEDS
def test_remote_store(load_cuda, seed):
    gpu, module = load_cuda("cuda_ptx", 90, seed)
    x = np.random.default_rng(2).integers(-1000, 1000, (2, 2, 64, 4)).astype(np.int32)
    out, arrivals = gpu.empty(x.shape, np.int32), gpu.empty(2, np.int32)
    module["remote_store"](4, 64, gpu.array(x), out, arrivals)
    np.testing.assert_array_equal(out, x[:, ::-1])
    np.testing.assert_array_equal(arrivals, [128, 128])


@SEEDS
def test_multicast(load_cuda, seed):
    gpu, module = load_cuda("cuda_ptx", 90, seed)
    x = np.arange(256, dtype=np.int32) * 7
    out = gpu.empty((4, 256), np.int32)
    module["multicast"](4, 128, gpu.array(x), out)
    np.testing.assert_array_equal(out, x + np.arange(4)[:, None])


@SEEDS
def test_shared_to_shared(load_cuda, seed):
    gpu, module = load_cuda("cuda_ptx", 90, seed)
    x = np.random.default_rng(3).integers(-1000, 1000, (2, 2, 64)).astype(np.int32)
    out = gpu.empty(x.shape, np.int32)
    module["shared_to_shared"](4, 64, gpu.array(x), out)
    np.testing.assert_array_equal(out, x[:, ::-1])


def test_special_registers(load_cuda):
    gpu, module = load_cuda("cuda_ptx", 90)
    out = gpu.empty((3, 70, 12), np.uint32)
    module["registers"](3, 70, out, shared_bytes=48)
    block, thread = np.meshgrid(np.arange(3), np.arange(70), indexing="ij")
    lane = thread % 32
    below = (1 << lane) - 1
    full = np.full_like(block, 0xFFFFFFFF)
    expected = [
        thread, np.full_like(block, 70), lane, block, np.full_like(block, 3), 1 << lane, below | 1 << lane, below,
        full ^ below, full ^ below ^ 1 << lane, np.full_like(block, 48), thread // 32,
    ]  # fmt: skip
    np.testing.assert_array_equal(out, np.stack(expected, -1))
