"""Cooperative groups against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@ARCHES
@SEEDS
@pytest.mark.parametrize("width", [4, 16, 32])
def test_tiles(load_cuda, arch, seed, width):
    gpu, module = load_cuda("cooperative_groups", arch, seed)
    x = np.random.default_rng(1).integers(-100, 100, (128 // width, width)).astype(np.int32)
    total, largest, before, shuffled = (gpu.empty(x.shape, np.int32) for _ in range(4))
    module[f"tile_{width}"](1, 128, gpu.array(x), total, largest, before, shuffled)
    np.testing.assert_array_equal(total, np.broadcast_to(x.sum(1, keepdims=True), x.shape))
    np.testing.assert_array_equal(largest, np.broadcast_to(x.max(1, keepdims=True), x.shape))
    np.testing.assert_array_equal(before, np.cumsum(x, 1) - x)
    up = np.concatenate([x[:, :1], x[:, :-1]], 1)  # the ends keep their own
    down = np.concatenate([x[:, 1:], x[:, -1:]], 1)
    swapped = x[:, np.arange(width) ^ 1]
    np.testing.assert_array_equal(shuffled, x[:, -1:] + 3 * swapped + 5 * up + 7 * down)


@ARCHES
@SEEDS
def test_tiles_of_two_warps(load_cuda, arch, seed):
    gpu, module = load_cuda("cooperative_groups", arch, seed)
    x = np.random.default_rng(2).integers(-100, 100, (2, 64)).astype(np.float32)
    total, before = gpu.empty(x.shape), gpu.empty(x.shape)
    module["tile_64"](1, 128, gpu.array(x), total, before)
    np.testing.assert_array_equal(total, np.broadcast_to(x.sum(1, keepdims=True), x.shape))
    np.testing.assert_array_equal(before, np.cumsum(x, 1))


@ARCHES
@SEEDS
def test_coalesced_threads(load_cuda, arch, seed):
    gpu, module = load_cuda("cooperative_groups", arch, seed)
    x = np.random.default_rng(3).integers(-20, 20, 500).astype(np.int32)
    out, count = gpu.empty(500, np.int32), gpu.zeros(1, np.int32)
    module["compact"](4, 128, gpu.array(x), 500, out, count)
    kept = x[x > 0]
    assert count[0] == kept.size
    np.testing.assert_array_equal(np.sort(out[: kept.size]), np.sort(kept))


@ARCHES
def test_partitions(load_cuda, arch):
    gpu, module = load_cuda("cooperative_groups", arch)
    rng = np.random.default_rng(4)
    label, x = rng.integers(0, 5, (2, 32)).astype(np.int32), rng.integers(-99, 99, (2, 32)).astype(np.int32)
    total, size, half = (gpu.empty(x.shape, np.int32) for _ in range(3))
    module["labelled"](1, 64, gpu.array(label), gpu.array(x), total, size, half)
    same = label[:, :, None] == label[:, None, :]
    np.testing.assert_array_equal(total, (same * x[:, None, :]).sum(2))
    np.testing.assert_array_equal(size, same.sum(2))
    alike = (x[:, :, None] & 1) == (x[:, None, :] & 1)
    np.testing.assert_array_equal(half, np.bitwise_xor.reduce(alike * x[:, None, :], 2))


@ARCHES
def test_votes(load_cuda, arch):
    gpu, module = load_cuda("cooperative_groups", arch)
    x = np.random.default_rng(5).integers(-3, 4, (4, 16)).astype(np.int32)
    x[2] = 1
    ballot, match_any, match_all = (gpu.empty(x.shape, np.uint32) for _ in range(3))
    some, every = (gpu.empty(x.shape, np.int32) for _ in range(2))
    module["votes"](1, 64, gpu.array(x), ballot, some, every, match_any, match_all)
    bits = 1 << np.arange(16)

    def spread(rows):
        return np.broadcast_to(np.asarray(rows)[:, None], x.shape)

    np.testing.assert_array_equal(ballot, spread(((x > 0) * bits).sum(1)))
    np.testing.assert_array_equal(some != 0, spread((x > 2).any(1)))
    np.testing.assert_array_equal(every != 0, spread((x > -3).all(1)))
    np.testing.assert_array_equal(match_any, ((x[:, :, None] == x[:, None, :]) * bits).sum(2))
    np.testing.assert_array_equal(match_all, np.full(x.shape, 0x8000FFFF))


@ARCHES
def test_operators(load_cuda, arch):
    gpu, module = load_cuda("cooperative_groups", arch)
    x = np.random.default_rng(6).integers(0, 2**32, (2, 32), dtype=np.uint32)
    out, wide = gpu.empty((2, 4), np.uint32), gpu.empty(2, np.int64)
    real, product = gpu.empty(2, np.float64), gpu.empty(2, np.int32)
    module["operators"](1, 64, gpu.array(x), out, wide, real, product)
    np.testing.assert_array_equal(
        out.T, [np.bitwise_and.reduce(x, 1), np.bitwise_or.reduce(x, 1), np.bitwise_xor.reduce(x, 1), x.min(1)]
    )
    np.testing.assert_array_equal(wide, (x.astype(np.int64) << 20).sum(1))
    np.testing.assert_array_equal(real, (x * 0.25).sum(1))
    np.testing.assert_array_equal(product.view(np.uint32), np.multiply.reduce(x | np.uint32(1), 1, dtype=np.uint32))


@ARCHES
@SEEDS
def test_grid_barrier(load_cuda, arch, seed):
    gpu, module = load_cuda("cooperative_groups", arch, seed)
    x = np.random.default_rng(7).integers(-100, 100, 6 * 64).astype(np.int32)
    total, out = gpu.zeros(1, np.int32), gpu.empty(x.size, np.int32)
    source = gpu.array(x)
    for _ in range(2):  # the barrier is ready for the next launch
        module["grid_barrier"](6, 64, source, total, out, cooperative=True)
        np.testing.assert_array_equal(out, x.sum() - x)
        assert total[0] == 0


@ARCHES
@SEEDS
def test_memcpy_async(load_cuda, arch, seed):
    gpu, module = load_cuda("cooperative_groups", arch, seed)
    x = np.random.default_rng(8).standard_normal((3, 256)).astype(np.float32)
    out = gpu.empty(x.shape)
    module["copy_to_shared"](3, 96, gpu.array(x), out, shared_bytes=1024)
    np.testing.assert_array_equal(out, x[:, ::-1])


@SEEDS
@pytest.mark.parametrize("size", [2, 4])
def test_cluster(load_cuda, seed, size):
    gpu, module = load_cuda("cooperative_groups", 90, seed)
    x = np.random.default_rng(9).integers(-100, 100, (8 // size, size, 64)).astype(np.int32)
    neighbour, total, ranks = gpu.empty(x.shape, np.int32), gpu.empty(8 // size, np.int32), gpu.empty(x.shape, np.int32)
    module["cluster"](8, 64, gpu.array(x), neighbour, total, ranks, cluster=size)
    np.testing.assert_array_equal(neighbour, np.roll(x, -1, 1))
    np.testing.assert_array_equal(total, x.sum((1, 2)))
    block = np.arange(size)[:, None]
    thread = np.arange(64)
    expected = (block * 64 + thread) * 1000 + (block + 1) % size
    np.testing.assert_array_equal(ranks, np.broadcast_to(expected, x.shape))
