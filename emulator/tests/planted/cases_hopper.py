"""Launches of the kernels in mbarrier.cu, tma.cu, wgmma.cu, persistent_gemm.cu, cluster.cu and dependent_launch.cu."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.planted.harness import Run, planted

INTS = np.random.default_rng(2).integers(-50, 50, 8192).astype(np.int32)


# mbarrier.cu


def _reverse(run: Run, n: int, *args: int) -> None:
    out = run.empty(n)
    run(1, n, run.array(INTS[:n]), out, *args)
    assert_array_equal(out, INTS[:n][::-1])


def _weighted_rounds(values: np.ndarray, rounds: int) -> np.ndarray:
    """The sum over rounds of the reversed row, each times its number from 1."""
    return (np.arange(1, rounds + 1)[:, None] * values.reshape(rounds, -1)).sum(0)[::-1]


@planted("mbarrier.cu", "sm_90a")
def mbarrier_without_init(run: Run) -> None:
    _reverse(run, 128)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_init_without_barrier(run: Run) -> None:
    _reverse(run, 128)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_count_too_high(run: Run) -> None:
    _reverse(run, 128)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_count_too_low(run: Run) -> None:
    _reverse(run, 128)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_too_many_arrivals(run: Run) -> None:
    _reverse(run, 64)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_bad_count(run: Run) -> None:
    _reverse(run, 64, 64)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_wrong_parity(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:768]), out)
    assert_array_equal(out, _weighted_rounds(INTS[:768], 6))


@planted("mbarrier.cu", "sm_90a")
def mbarrier_stale_state(run: Run) -> None:
    mbarrier_wrong_parity(run)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_leave_without_drop(run: Run) -> None:
    out = run.empty(64)
    run(1, 128, run.array(INTS[:128]), out)
    assert_array_equal(out, INTS[64:128])


@planted("mbarrier.cu", "sm_90a")
def mbarrier_init_twice(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:128]), out)
    assert_array_equal(out, _weighted_rounds(INTS[:128], 2))


@planted("mbarrier.cu", "sm_90a")
def mbarrier_used_after_inval(run: Run) -> None:
    mbarrier_init_twice(run)


@planted("mbarrier.cu", "sm_90a")
def mbarrier_overwritten(run: Run) -> None:
    _reverse(run, 64)


@planted("mbarrier.cu", "sm_90a")
def ring(run: Run) -> None:
    out = run.empty(64)
    run(1, 128, run.array(INTS[: 64 * 11]), out, 11)
    assert_array_equal(out, _weighted_rounds(INTS[: 64 * 11], 11))


# tma.cu


@planted("tma.cu", "sm_90a")
def bulk_load_not_awaited(run: Run) -> None:
    out = run.empty(256)
    run(1, 256, run.array(INTS[:256]), out)
    assert_array_equal(out, INTS[:256] + INTS[255::-1])


@planted("tma.cu", "sm_90a")
def bulk_bad_size(run: Run) -> None:
    out = run.empty(32)
    run(1, 64, run.array(INTS[:32]), out, 128)
    assert_array_equal(out, INTS[:32])


@planted("tma.cu", "sm_90a")
def bulk_misaligned(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:68]), out)
    assert_array_equal(out, INTS[4:68])


@planted("tma.cu", "sm_90a")
def bulk_past_end(run: Run) -> None:
    out = run.empty(200)
    run(4, 64, run.array(INTS[:200]), out, 200)
    assert_array_equal(out, INTS[:200])


@planted("tma.cu", "sm_90a")
def bulk_store_among_adds(run: Run) -> None:
    out = run.zeros(64)
    run(3, 64, run.array(INTS[:192]), out)
    assert_array_equal(out, INTS[:192].reshape(3, 64).sum(0))


def _map(run: Run, rows: int, columns: int = 32, **options: Any) -> tuple[emulator.TensorMap, np.ndarray]:
    """A map over an array of ints in boxes of 8 x 32, and the values."""
    values = INTS[: rows * columns].reshape(rows, columns)
    return emulator.TensorMap(run.array(values), (8, 32), **options), values


def _one_tile(run: Run, tensor_map: Any, first_row: int = 0, **options: Any) -> None:
    out = run.empty(256)
    run(1, 256, tensor_map, out, **options)
    assert_array_equal(out, INTS[32 * first_row : 32 * first_row + 256])


@planted("tma.cu", "sm_90a")
def tma_misaligned_target(run: Run) -> None:
    _one_tile(run, _map(run, 8)[0])


@planted("tma.cu", "sm_90a")
def tma_target_past_end(run: Run) -> None:
    # The mbarrier comes before the tile, and the tile's alignment costs the rest of 128 bytes.
    _one_tile(run, _map(run, 8)[0], shared_bytes=512 if run.bug else 1024)


@planted("tma.cu", "sm_90a")
def tma_source_past_end(run: Run) -> None:
    array, out = run.array(INTS[:384].reshape(12, 32)), run.empty(512)
    run(2, 256, emulator.TensorMap(array, (8, 32), dims=(16 if run.bug else 12, 32)), out)
    assert_array_equal(out, np.where(np.arange(512) < 384, INTS[:512], 0))


@planted("tma.cu", "sm_90a")
def tma_wrong_rank(run: Run) -> None:
    _one_tile(run, _map(run, 16)[0], 8)


@planted("tma.cu", "sm_90a")
def tma_no_descriptor(run: Run) -> None:
    _one_tile(run, bytes(128) if run.bug else _map(run, 8)[0])


@planted("tma.cu", "sm_90a")
def tma_swizzle_forgotten(run: Run) -> None:
    _one_tile(run, _map(run, 8, swizzle="none" if run.bug else "128B")[0])


@planted("tma.cu", "sm_90a")
def tma_coordinates_swapped(run: Run) -> None:
    tensor_map, values = _map(run, 32, 64)
    out = run.empty((32, 64))
    run((2, 4), 256, tensor_map, out)
    assert_array_equal(out, values)


def _stored(run: Run, tiles: int, grid: int = 1) -> None:
    out = run.empty((8 * tiles, 32))
    run(grid, 256, run.array(INTS[: 256 * tiles]), emulator.TensorMap(out, (8, 32)))
    assert_array_equal(out.ravel(), INTS[: 256 * tiles])


@planted("tma.cu", "sm_90a")
def tma_store_without_proxy_fence(run: Run) -> None:
    _stored(run, 1)


@planted("tma.cu", "sm_90a")
def tma_store_without_barrier(run: Run) -> None:
    _stored(run, 1)


@planted("tma.cu", "sm_90a")
def tma_store_source_rewritten(run: Run) -> None:
    _stored(run, 3)


@planted("tma.cu", "sm_90a")
def tma_store_pending_at_exit(run: Run) -> None:
    _stored(run, 2, grid=2)


@planted("tma.cu", "sm_90a")
def tma_store_waited_by_another(run: Run) -> None:
    _stored(run, 3)


@planted("tma.cu", "sm_90a")
def tma_store_not_committed(run: Run) -> None:
    _stored(run, 3)


@planted("tma.cu", "sm_90a")
def stmatrix_without_sync(run: Run) -> None:
    words, out = np.arange(64, dtype=np.uint32), run.empty(64, np.uint32)
    run(1, 32, run.array(words, np.uint32), out)
    lane = np.arange(32)
    assert_array_equal(out, np.concatenate([words[lane ^ 21], words[32 + (lane ^ 7)]]))


@planted("tma.cu", "sm_90a")
def tma_store_read_back(run: Run) -> None:
    stored, out = run.zeros((8, 32)), run.empty(1)
    run(1, 256, run.array(INTS[:256]), emulator.TensorMap(stored, (8, 32)), stored, out)
    assert out[0] == INTS[:32].sum()


@planted("tma.cu", "sm_90a")
def tma_store_fence_too_early(run: Run) -> None:
    _stored(run, 1)


@planted("tma.cu", "sm_90a")
def tma_store_fence_by_one(run: Run) -> None:
    _stored(run, 1)


@planted("tma.cu", "sm_90a")
def tma_store_two_buffers(run: Run) -> None:
    tiles = 5
    out = run.empty((8 * tiles, 32))
    run(1, 256, run.array(INTS[: 256 * tiles]), emulator.TensorMap(out, (8, 32)), tiles)
    assert_array_equal(out.ravel(), INTS[: 256 * tiles] + np.repeat(np.arange(tiles), 256))


@planted("tma.cu", "sm_90a")
def tma_load_over_stores(run: Run) -> None:
    _one_tile(run, _map(run, 8)[0])


@planted("tma.cu", "sm_90a")
def tensor_map_without_acquire(run: Run) -> None:
    # A map of zeros, in global memory, that the kernel points at the values.
    tensor_map = emulator.TensorMap(run.zeros((8, 32)), (8, 32))
    in_memory = run.array(np.frombuffer(bytes(tensor_map), np.uint8), np.uint8)
    out = run.empty(256)
    run(1, 256, in_memory, run.array(INTS[:256]), out)
    assert_array_equal(out, INTS[:256])


@planted("tma.cu", "sm_90a")
def pipeline(run: Run) -> None:
    rounds = 8
    tensor_map, values = _map(run, 8 * rounds - 3)  # the last box hangs over the end
    out = run.empty(128)
    run(1, 160, tensor_map, out, rounds)
    tiles = np.zeros((rounds, 256), np.int32)
    tiles.ravel()[: values.size] = values.ravel()
    weighted = np.arange(1, rounds + 1)[:, None] * (tiles - tiles[:, ::-1])
    assert_array_equal(out, weighted.sum(0)[:128])


# wgmma.cu


def small_bf16(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Small whole numbers, so that products in bf16 are exact."""
    return torch.randint(-3, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def _product(run: Run, m: int, k: int, threads: int, *args: int, n: int = 8, start: float = 0.0) -> None:
    """A[m, k] and B[n, k] in boxes of 64 columns, with the 128-byte swizzle."""
    a, b = small_bf16(m, k, 4), small_bf16(n, k, 5)
    map_a = emulator.TensorMap(run.gpu.array(a), (m, 64), swizzle="128B")
    map_b = emulator.TensorMap(run.gpu.array(b), (8, 64), swizzle="128B")
    out = run.empty((m, n), np.float32)
    run(1, threads, map_a, map_b, out, *args)
    assert_array_equal(out, (a.float() @ b.float().T).numpy() + start)


@planted("wgmma.cu", "sm_90a")
def one_tile(run: Run) -> None:
    _product(run, 64, 64, 128, start=1.0)


@planted("wgmma.cu", "sm_90a")
def stored_operands(run: Run) -> None:
    a, b = small_bf16(128, 64, 6), small_bf16(16, 64, 7)
    out = run.empty((64, 8), np.float32)
    run(1, 128, run.gpu.array(a), run.gpu.array(b), out)
    expected = a[:64].float() @ b[:8].float().T + a[64:].float() @ b[8:].float().T
    assert_array_equal(out, expected.numpy())


@planted("wgmma.cu", "sm_90a")
def gathered_rows(run: Run) -> None:
    a, b = small_bf16(100, 64, 10), small_bf16(8, 64, 11)
    row_of = np.random.default_rng(12).permutation(100)[:64]
    out = run.empty((64, 8), np.float32)
    run(1, 256, run.gpu.array(a), run.array(row_of), run.gpu.array(b), out)
    assert_array_equal(out, (a[row_of].float() @ b.float().T).numpy())


@planted("wgmma.cu", "sm_90a")
def registers_overwritten(run: Run) -> None:
    a, b = small_bf16(64, 64, 8), small_bf16(8, 64, 9)
    out = run.empty((64, 8), np.float32)
    words = a.view(torch.int16).numpy().view(np.uint32)
    run(1, 128, run.array(words, np.uint32), run.gpu.array(b), out)
    assert_array_equal(out, (a[:, :16].float() @ b[:, :16].float().T).numpy())


@planted("wgmma.cu", "sm_90a")
def ping_pong_accumulators(run: Run) -> None:
    _product(run, 64, 64, 128, n=16)


@planted("wgmma.cu", "sm_90a")
def gemm(run: Run) -> None:
    _product(run, 128, 448, 288, 448)


@planted("wgmma.cu", "sm_90a")
def setmaxnreg_by_some_warps(run: Run) -> None:
    out = run.empty(256)
    run(1, 256, run.array(INTS[:256]), out)
    assert_array_equal(out, INTS[:256] + np.where(np.arange(256) < 128, 1, -1))


# persistent_gemm.cu


@planted("persistent_gemm.cu", "sm_90a")
def gather_gemm(run: Run) -> None:
    tiles, k = 5, 192
    a, b = small_bf16(100, k, 13), small_bf16(8, k, 14)
    row_of = np.random.default_rng(15).integers(0, 100, tiles * 64)
    out = run.empty((tiles * 64, 8), np.float32)
    map_b = emulator.TensorMap(run.gpu.array(b), (8, 64), swizzle="128B")
    map_out = emulator.TensorMap(out, (64, 8))
    run(2, 256, run.gpu.array(a), run.array(row_of), map_b, map_out, tiles, k)
    assert_array_equal(out, (a[row_of].float() @ b.float().T).numpy())


# cluster.cu


def _from_neighbour(run: Run) -> None:
    out = run.empty(256)
    run(4, 64, run.array(INTS[:256]), out, cluster=2)
    assert_array_equal(out.reshape(4, 64), INTS[:256].reshape(2, 2, 64)[:, ::-1, ::-1].reshape(4, 64))


@planted("cluster.cu", "sm_90a")
def read_without_cluster_barrier(run: Run) -> None:
    _from_neighbour(run)


@planted("cluster.cu", "sm_90a")
def relaxed_cluster_barrier(run: Run) -> None:
    _from_neighbour(run)


@planted("cluster.cu", "sm_90a")
def neighbour_leaves_early(run: Run) -> None:
    out = run.empty(64)
    run(2, 64, run.array(INTS[:128]), out, cluster=2)
    values = INTS[64:128]
    assert_array_equal(out, sum((i + 1) * np.roll(values, -i) for i in range(64)))


@planted("cluster.cu", "sm_90a")
def cluster_barrier_arrives_twice(run: Run) -> None:
    _from_neighbour(run)


@planted("cluster.cu", "sm_90a")
def cluster_barrier_skipped(run: Run) -> None:
    out = run.empty(128)
    run(2, 64, run.array(INTS[:128]), out, cluster=2)
    assert_array_equal(out, INTS[:128] + np.arange(128) // 64)


@planted("cluster.cu", "sm_90a")
def rank_outside_cluster(run: Run) -> None:
    out = run.empty(128)
    run(2, 64, run.array(INTS[:128]), out, cluster=2)
    assert_array_equal(out, np.roll(INTS[:128], 64))


@planted("cluster.cu", "sm_90a")
def arrives_at_its_own(run: Run) -> None:
    out = run.empty(64)
    run(2, 64, run.array(INTS[:2]), out, cluster=2)
    assert_array_equal(out, np.full(64, INTS[:2].sum()))


@planted("cluster.cu", "sm_90a")
def arrives_before_storing(run: Run) -> None:
    out = run.empty(64)
    run(2, 64, run.array(INTS[:64]), out, cluster=2)
    assert_array_equal(out, INTS[63::-1])


@planted("cluster.cu", "sm_90a")
def remote_stores(run: Run) -> None:
    _from_neighbour(run)


@planted("cluster.cu", "sm_90a")
def shared_histogram(run: Run) -> None:
    bins, out = np.abs(INTS[:128]) % 16, run.empty(16)
    run(2, 64, run.array(bins), out, cluster=2)
    assert_array_equal(out, np.bincount(bins, minlength=16))


@planted("cluster.cu", "sm_90a")
def cluster_over_limit(run: Run) -> None:
    out = run.empty(2048)
    size = 32 if run.bug else 8
    run(32, 64, run.array(INTS[:2048]), out, cluster=size)
    assert_array_equal(out, INTS[:2048] + np.arange(2048) // 64 % size)


@planted("cluster.cu", "sm_90a")
def cluster_of_another_size(run: Run) -> None:
    out = run.empty(512)
    run(8, 64, run.array(INTS[:512]), out, cluster=4 if run.bug else 2)
    assert_array_equal(out, INTS[:512] - np.arange(512) // 64 % 2)


@planted("cluster.cu", "sm_90a")
def multicast(run: Run) -> None:
    rounds = 6
    values = INTS[: 256 * rounds].reshape(rounds, 256)
    out = run.empty((2, 128))
    tensor_map = emulator.TensorMap(run.array(values.reshape(-1, 32)), (4, 32))
    run(2, 128, tensor_map, out, rounds, cluster=2)
    expected = (np.arange(1, rounds + 1)[:, None] * (values - values[:, ::-1])).sum(0)[:128]
    assert_array_equal(out, np.stack([expected, expected]))


# dependent_launch.cu


@planted("dependent_launch.cu", "sm_90a")
def read_before_wait(run: Run) -> None:
    source, middle, out = run.array(INTS[:128]), run.empty(128), run.empty(128)
    run(2, 64, source, middle, out, 0)
    run(2, 64, source, middle, out, 1, programmatic=True)
    assert_array_equal(out, 2 * INTS[:128] + 1)


@planted("dependent_launch.cu", "sm_90a")
def write_before_wait(run: Run) -> None:
    values, out = run.array(INTS[:128]), run.empty(128)
    run(2, 64, values, out, 0)
    run(2, 64, values, out, 1, programmatic=True)
    assert_array_equal(out, INTS[:128] + 1)
    assert_array_equal(values, np.full(128, -1))
