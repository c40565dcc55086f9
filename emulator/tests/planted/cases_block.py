"""Launches of the kernels in barriers.cu, cp_async.cu and warp.cu."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_array_equal

from emulator.tests.planted.harness import Run, planted

INTS = np.random.default_rng(1).integers(-50, 50, 4096).astype(np.int32)


# barriers.cu


@planted("barriers.cu")
def reduction_without_barrier(run: Run) -> None:
    out = run.empty(2)
    run(2, 128, run.array(INTS[:256]), out)
    assert_array_equal(out, INTS[:256].reshape(2, 128).sum(1))


@planted("barriers.cu")
def reduction_skips_one_level(run: Run) -> None:
    out = run.empty(2)
    run(2, 256, run.array(INTS[:512]), out)
    assert_array_equal(out, INTS[:512].reshape(2, 256).sum(1))


@planted("barriers.cu")
def reuse_without_barrier(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:512]), out)
    assert_array_equal(out, INTS[:512].reshape(4, 128).sum(0)[::-1])


@planted("barriers.cu")
def double_buffer(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:1024]), out)
    weights = np.arange(1, 9)[:, None]
    assert_array_equal(out, np.roll((weights * INTS[:1024].reshape(8, 128)).sum(0), -37))


@planted("barriers.cu")
def two_writers(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(np.arange(7, 135)), out)
    assert_array_equal(out, np.full(128, 7))


@planted("barriers.cu")
def histogram_without_atomics(run: Run) -> None:
    bins, out = np.abs(INTS[:128]) % 16, run.empty(16)
    run(1, 128, run.array(bins), out)
    assert_array_equal(out, np.bincount(bins, minlength=16))


@planted("barriers.cu")
def histogram_read_early(run: Run) -> None:
    bins, out = np.abs(INTS[:512]) % 16, run.zeros(16)
    run(4, 128, run.array(bins), out)
    assert_array_equal(out, np.bincount(bins, minlength=16))


@planted("barriers.cu")
def neighbouring_bytes(run: Run) -> None:
    out = run.empty(128, np.uint8)
    run(1, 128, run.array(np.arange(100, 228)), out)
    assert_array_equal(out, np.arange(100, 228)[::-1])


@planted("barriers.cu")
def fixpoint(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    assert_array_equal(out, np.full(64, INTS[:64].max()))


@planted("barriers.cu")
def flag_without_fence(run: Run) -> None:
    out = run.empty(64)
    run(1, 96, run.array([41]), out)
    assert_array_equal(out, 41 + np.arange(32, 96))


@planted("barriers.cu")
def named_barriers(run: Run) -> None:
    out = run.empty(32)
    run(1, 64, run.array(INTS[:160]), out)
    assert_array_equal(out, (np.arange(1, 6)[:, None] * INTS[:160].reshape(5, 32)).sum(0)[::-1])


def _reverse(run: Run, threads: int, n: int, *args: int) -> None:
    out = run.empty(n)
    run(1, threads, run.array(INTS[:n]), out, *args)
    assert_array_equal(out, INTS[:n][::-1])


@planted("barriers.cu")
def named_barrier_wrong_count(run: Run) -> None:
    _reverse(run, 64, 32)


@planted("barriers.cu")
def named_barrier_wrong_id(run: Run) -> None:
    _reverse(run, 64, 32)


@planted("barriers.cu")
def barrier_bad_count(run: Run) -> None:
    _reverse(run, 64, 64, 64)


@planted("barriers.cu")
def barrier_bad_id(run: Run) -> None:
    _reverse(run, 64, 64, 15)


@planted("barriers.cu")
def barrier_in_half_a_warp(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    assert_array_equal(out, INTS[63::-1] + 3)


@planted("barriers.cu")
def barrier_skipped_by_a_warp(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:128]), out)
    left = np.where(np.arange(128) < 96, INTS[(np.arange(128) + 1) % 96], 0)
    assert_array_equal(out, left + INTS[127::-1])


@planted("barriers.cu")
def work_queue(run: Run) -> None:
    out = run.empty(64 * 9)
    run(2, 64, run.array(INTS[:576]), out, 9, run.zeros(1))
    assert_array_equal(out, 5 * INTS[:576])


@planted("barriers.cu")
def overlapping_arrays(run: Run) -> None:
    values = np.abs(INTS[:64]) * 64 + np.arange(64) % 50
    out = run.empty(64)
    run(1, 64, run.array(values), out, shared_bytes=512)
    assert_array_equal(out, (values >> 6)[values & 63])


@planted("barriers.cu")
def counter_init_without_barrier(run: Run) -> None:
    out = run.empty(1)
    run(1, 128, run.array(INTS[:128]), out)
    assert out[0] == (INTS[:128] > 0).sum()


@planted("barriers.cu")
def named_barrier_zero(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:128]), out)
    expected = INTS[:128].copy()
    expected[:32] += expected[32:64]
    assert_array_equal(out, expected[::-1])


@planted("barriers.cu")
def named_barrier_after_exit(run: Run) -> None:
    _reverse(run, 128, 96)


# cp_async.cu

CHUNKS = INTS[:512].reshape(128, 4)


@planted("cp_async.cu")
def copy_not_awaited(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:512]), out)
    assert_array_equal(out, CHUNKS[:, 0] + CHUNKS[:, 3])


@planted("cp_async.cu")
def copy_wait_too_lax(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:1024]), out)
    assert_array_equal(out, CHUNKS[:, 0] + INTS[512:1024].reshape(128, 4)[:, 1])


@planted("cp_async.cu")
def copy_not_committed(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:512]), out)
    assert_array_equal(out, CHUNKS[:, 0] - CHUNKS[:, 2])


@planted("cp_async.cu")
def copies_of_others(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:512]), out)
    assert_array_equal(out, CHUNKS[::-1, 3])


@planted("cp_async.cu")
def copies_of_a_neighbour(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:128]), out)
    assert_array_equal(out, 2 * INTS[:128])


@planted("cp_async.cu")
def store_over_pending_copy(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:512]), out)
    assert_array_equal(out, CHUNKS[:, 0] + 7)


@planted("cp_async.cu")
def copy_over_pending_copy(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:1536]), out)
    values = INTS[:1536].reshape(3, 128, 4)
    assert_array_equal(out, values[0, :, 0] + 2 * values[1, :, 1] + 3 * values[2, :, 2])


@planted("cp_async.cu")
def copy_misaligned(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:516]), out)
    assert_array_equal(out, CHUNKS[:, 0] + CHUNKS[:, 3])


@planted("cp_async.cu")
def copy_past_end(run: Run) -> None:
    out = run.empty(128)
    run(1, 128, run.array(INTS[:401]), out, 401)
    assert_array_equal(out, np.where(np.arange(512) < 401, INTS[:512], 0).reshape(128, 4).sum(1))


@planted("cp_async.cu")
def copy_mbarrier_wrong_phase(run: Run) -> None:
    copies_of_others(run)


@planted("cp_async.cu")
def copy_mbarrier_without_arrival(run: Run) -> None:
    copies_of_others(run)


def small_bf16(rows: int, columns: int, seed: int = 2) -> torch.Tensor:
    """Small whole numbers, so that products in bf16 are exact."""
    return torch.randint(-3, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@planted("cp_async.cu")
def gemm(run: Run) -> None:
    m, n, k = 32, 64, 224
    a, b = small_bf16(m, k), small_bf16(n, k, 3)
    out = run.empty((m, n), np.float32)
    run((n // 32, m // 32), 128, run.gpu.array(a), run.gpu.array(b), out, m, n, k)
    assert_array_equal(out, (a.float() @ b.float().T).numpy())


# warp.cu


@planted("warp.cu")
def transpose_without_syncwarp(run: Run) -> None:
    out = run.empty(384)
    run(1, 128, run.array(INTS[:384]), out)
    lane = np.arange(32)
    assert_array_equal(out.reshape(12, 32), INTS[:384].reshape(12, 32)[:, (lane * 4 + lane // 8) % 32])


@planted("warp.cu")
def warp_synchronous_reduction(run: Run) -> None:
    out = run.empty(1)
    run(1, 32, run.array(INTS[:64]), out)
    assert out[0] == INTS[:64].sum()


@planted("warp.cu")
def volatile_warp_reduction(run: Run) -> None:
    # Many blocks: which lanes run ahead of which is a matter of chance.
    out = run.empty(16)
    run(16, 32, run.array(INTS[:1024]), out)
    assert_array_equal(out, INTS[:1024].reshape(16, 64).sum(1))


@planted("warp.cu")
def shuffle_in_a_branch(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    index = np.arange(64)
    values = INTS[:64] + np.where(index % 32 < 16, INTS[index ^ 1], 0)
    assert_array_equal(out, values - values[index ^ 16])


@planted("warp.cu")
def ballot_after_some_left(run: Run) -> None:
    rounds, out = np.arange(32) % 5, run.empty(32)
    run(1, 32, run.array(rounds), out)
    assert_array_equal(out, [sum((rounds > i).sum() for i in range(r)) for r in rounds])


@planted("warp.cu")
def shuffle_not_in_mask(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out)
    assert_array_equal(out, INTS[:32] + INTS[np.arange(32) ^ 2])


@planted("warp.cu")
def shuffle_from_inactive_lane(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out)
    lane = np.arange(32)
    assert_array_equal(out, INTS[:32] + np.where(lane < 16, INTS[(lane + 8) % 16], 0))


@planted("warp.cu")
def redux_wrong_mask(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out)
    values = np.where(np.arange(32) < 8, INTS[:32], INTS[8:32].sum())
    assert_array_equal(out, values - values.max())


@planted("warp.cu")
def match_wrong_mask(run: Run) -> None:
    keys, out = np.abs(INTS[:32]) % 4, run.zeros(5)
    run(1, 32, run.array(keys), out, 21)
    counts = np.bincount(keys[:21], minlength=4)
    assert_array_equal(out, np.append(counts, (counts > 0).sum()))


@planted("warp.cu")
def syncwarp_not_in_mask(run: Run) -> None:
    _reverse(run, 32, 32)


@planted("warp.cu")
def syncwarp_in_a_branch(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out)
    reverse = INTS[31::-1]
    assert_array_equal(out, np.where(reverse > 0, reverse, INTS[:32]))


@planted("warp.cu")
def lock_within_a_warp(run: Run) -> None:
    out = run.empty(1)
    run(1, 32, run.array(INTS[:32]), out)
    assert out[0] == INTS[:32].sum()


@planted("warp.cu")
def lock_without_fences(run: Run) -> None:
    out = run.empty(1)
    run(1, 128, run.array(INTS[:128]), out)
    assert out[0] == INTS[:128:32].sum()


def _one_product(run: Run) -> None:
    a, b, out = small_bf16(16, 16), small_bf16(8, 16, 3), run.empty((16, 8), np.float32)
    run(1, 32, run.gpu.array(a), run.gpu.array(b), out)
    assert_array_equal(out, (a.float() @ b.float().T).numpy())


@planted("warp.cu")
def ldmatrix_past_end(run: Run) -> None:
    _one_product(run)


@planted("warp.cu")
def ldmatrix_misaligned(run: Run) -> None:
    _one_product(run)


@planted("warp.cu")
def ldmatrix_without_syncwarp(run: Run) -> None:
    _one_product(run)


@planted("warp.cu")
def mma_in_a_branch(run: Run) -> None:
    a, b = small_bf16(16, 16), small_bf16(8, 16, 3)
    b[2, 2:4] = 0  # one lane's pair
    rows, columns = np.arange(32) // 4, np.arange(32) % 4
    pairs_a = a.view(torch.int16).numpy().view(np.uint32).reshape(16, 8)
    pairs_b = b.view(torch.int16).numpy().view(np.uint32).reshape(8, 8)
    fragments_a = [pairs_a[rows + 8 * (i % 2), columns + 4 * (i // 2)] for i in range(4)]
    fragments_b = [pairs_b[rows, columns + 4 * i] for i in range(2)]
    out = run.empty((16, 8), np.float32)
    run(1, 32, run.array(fragments_a, np.uint32), run.array(fragments_b, np.uint32), out)
    assert_array_equal(out, (a.float() @ b.float().T).numpy())


@planted("warp.cu")
def tile_without_sync(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    rows = INTS[:64].reshape(8, 8).copy()
    for row, values in enumerate(rows):
        for _ in range(row + 1):
            values += np.roll(values, -1)
    assert_array_equal(out.reshape(8, 8), np.repeat(rows.sum(1)[:, None], 8, axis=1))


@planted("warp.cu")
def aggregated_atomics(run: Run) -> None:
    expected = np.sort(INTS[:256][INTS[:256] > 0])
    count, out = run.zeros(1), run.empty(256)
    run(1, 256, run.array(INTS[:256]), count, out)
    assert count[0] == expected.size
    assert_array_equal(np.sort(out[: expected.size]), expected)
