"""Launches of the kernels in memory.cu and global_races.cu."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from emulator.tests.planted.harness import Run, planted

INTS = np.random.default_rng(1).integers(-50, 50, 4096).astype(np.int32)


# memory.cu


@planted("memory.cu")
def global_read_past_end(run: Run) -> None:
    out = run.zeros(100)
    run(2, 64, run.array(INTS[:100]), out, 100)
    assert_array_equal(out[:99], np.diff(INTS[:100]))


@planted("memory.cu")
def global_write_past_end(run: Run) -> None:
    out = run.empty(100)
    run(2, 64, run.array(INTS[:100]), out, 100)
    assert_array_equal(out, INTS[np.arange(100) // 2])


@planted("memory.cu")
def global_negative_index(run: Run) -> None:
    out = run.empty(100)
    run(2, 64, run.array(INTS[:100]), out, 100)
    assert_array_equal(out, np.diff(INTS[:100], prepend=0))


@planted("memory.cu")
def atomic_past_end(run: Run) -> None:
    bins = run.zeros(8)
    values = np.arange(64) % 9
    run(1, 64, run.array(values), bins, 8)
    assert_array_equal(bins, np.bincount(values)[:8])


@planted("memory.cu")
def shared_static_past_end(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    assert_array_equal(out, np.roll(INTS[:64], 1))


@planted("memory.cu")
def shared_dynamic_past_end(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out, shared_bytes=256)
    assert_array_equal(out, INTS[:64].reshape(8, 8).T.ravel())


@planted("memory.cu")
def local_index_past_end(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(np.arange(64) % 8), out)
    assert_array_equal(out, (np.arange(64) % 8) ** 2)


@planted("memory.cu")
def constant_past_end(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(np.arange(32) % 4), out)
    assert_array_equal(out, 10 ** (np.arange(32) % 4))


@planted("memory.cu")
def misaligned_float4(run: Run) -> None:
    values, out = run.array(INTS[:132], np.float32), run.empty(32, np.float32)
    run(1, 32, values, out)
    assert_array_equal(out, INTS[:128].reshape(32, 4).sum(1))


@planted("memory.cu")
def misaligned_shared(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), out)
    assert_array_equal(out, INTS[63::-1])


@planted("memory.cu")
def use_after_free(run: Run) -> None:
    values, out = run.array(INTS[:32]), run.empty(32)
    table = run.array([values.ctypes.data], np.uint64)
    run(1, 32, table, out)
    if run.bug:
        del values
    run(1, 32, table, out)
    assert_array_equal(out, INTS[:32])


@planted("memory.cu")
def uninitialised_shared(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:66]), out)
    assert_array_equal(out, INTS[:64] + INTS[1:65] + INTS[2:66])


@planted("memory.cu")
def uninitialised_register(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out)
    assert_array_equal(out, INTS[:32] + 5 * (INTS[:32] > 0))


@planted("memory.cu")
def uninitialised_local(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(np.arange(64) % 8), out)
    assert_array_equal(out, (np.arange(64) % 8) ** 2)


@planted("memory.cu")
def uninitialised_global(run: Run) -> None:
    out = run.empty(128)
    run(2, 64, run.array(INTS[:128]), out)
    assert_array_equal(out, INTS[:128])


@planted("memory.cu")
def gap_between_launches(run: Run) -> None:
    rows, out = run.empty(128), run.empty(128)
    run(2, 64, rows, out, 0)
    run(2, 64, rows, out, 1)
    assert_array_equal(out, 3 * np.arange(128) + 1)


@planted("memory.cu")
def shared_over_limit(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), out, shared_bytes=170_000 if run.bug else 160_000)
    assert_array_equal(out, INTS[31::-1])


@planted("memory.cu")
def threads_over_limit(run: Run) -> None:
    out = run.empty(200)
    run(1, 96 if run.bug else 64, run.array(INTS[:200]), out, 200)
    assert_array_equal(out, 2 * INTS[:200])


@planted("memory.cu")
def trap_reached(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(np.arange(64)), out, 60)
    assert_array_equal(out, np.minimum(np.arange(64), 60))


@planted("memory.cu")
def assertion_fails(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(np.arange(64)), out, 60)
    assert_array_equal(out, np.minimum(np.arange(64), 60))


@planted("memory.cu")
def vector_tail(run: Run) -> None:
    out = run.empty(102, np.float32)
    run(1, 32, run.array(INTS[:102], np.float32), out, 102)
    assert_array_equal(out, -INTS[:102])


# global_races.cu


@planted("global_races.cu")
def two_blocks_write(run: Run) -> None:
    out = run.empty(256)
    run(4, 64, run.array(INTS[:256]), out)
    assert_array_equal(out, INTS[:256])


@planted("global_races.cu")
def stencil_in_place(run: Run) -> None:
    out = run.empty(250)
    run(4, 64, run.array(INTS[:250]), out, 250)
    assert_array_equal(out, INTS[:250] + np.append(INTS[1:250], 0))


@planted("global_races.cu")
def exchange_within_a_block(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), run.zeros(64), out)
    assert_array_equal(out, 2 * INTS[np.arange(64) ^ 32])


@planted("global_races.cu")
def neighbouring_halves(run: Run) -> None:
    out = run.empty(33 * 5 + 1, np.uint16)
    run(5, 64, run.array(np.arange(1000, 1165)), out)
    assert_array_equal(out[:165], np.arange(1000, 1165))


@planted("global_races.cu")
def counter_half_atomic(run: Run) -> None:
    counter = run.zeros(1)
    run(4, 64, run.array(INTS[:256]), counter)
    assert counter[0] == (INTS[:256] > 0).sum()


@planted("global_races.cu")
def atomic_scope_too_narrow(run: Run) -> None:
    counter = run.zeros(1)
    run(4, 64, run.array(INTS[:256]), counter)
    assert counter[0] == INTS[:256].sum()


@planted("global_races.cu")
def last_block_reduction(run: Run) -> None:
    out = run.zeros(1)
    run(6, 64, run.array(INTS[:384]), run.empty(6), run.zeros(1, np.uint32), out)
    assert out[0] == INTS[:384].sum()


@planted("global_races.cu")
def last_block_of_many_writers(run: Run) -> None:
    out = run.empty(64)
    run(6, 64, run.array(INTS[:384]), run.zeros(384), run.zeros(1, np.uint32), out)
    assert_array_equal(out, 3 * INTS[:384].reshape(6, 64).sum(0))


@planted("global_races.cu")
def grid_without_sync(run: Run) -> None:
    out = run.empty(256)
    run(4, 64, run.array(INTS[:256]), run.zeros(256), out, 256, cooperative=True)
    assert_array_equal(out, INTS[255::-1] + 1)


@planted("global_races.cu")
def look_back_scan(run: Run) -> None:
    out = run.empty(512)
    run(8, 64, run.array(INTS[:512]), out, run.zeros(24), run.zeros(1, np.uint32))
    assert_array_equal(out, np.cumsum(INTS[:512]))


@planted("global_races.cu")
def message_without_fence(run: Run) -> None:
    out = run.empty(64)
    run(2, 64, run.array(INTS[:64]), run.zeros(64), run.zeros(1), out)
    assert_array_equal(out, INTS[np.arange(64) ^ 1])


@planted("global_races.cu")
def message_relaxed(run: Run) -> None:
    out = run.empty(32)
    run(2, 32, run.array([17]), run.zeros(1), run.zeros(1), out)
    assert_array_equal(out, 17 + np.arange(32))


@planted("global_races.cu")
def flag_never_set(run: Run) -> None:
    out = run.zeros(1)
    run(2, 32, run.array([5]), run.zeros(2), out)
    assert out[0] == 5


@planted("global_races.cu")
def hand_made_grid_barrier(run: Run) -> None:
    # Two blocks of 1024 threads fit on each of the 108 multiprocessors.
    blocks = 2 * 108 + 1 if run.bug else 20
    out = run.empty(blocks)
    run(blocks, 1024, run.array(INTS[:blocks]), run.zeros(1), run.empty(blocks), out)
    assert_array_equal(out, INTS[:blocks][::-1])


@planted("global_races.cu")
def polls_with_weak_load(run: Run) -> None:
    out = run.empty(32)
    run(2, 32, run.array([23]), run.zeros(1), out)
    assert_array_equal(out, np.full(32, 23))


@planted("global_races.cu")
def read_only_load_of_written(run: Run) -> None:
    out = run.empty(64)
    run(1, 64, run.array(INTS[:64]), run.zeros(64), out)
    assert_array_equal(out, INTS[np.arange(64) ^ 33] + 4)


@planted("global_races.cu")
def in_place_within_a_block(run: Run) -> None:
    values = run.array(INTS[:128])
    run(1, 128, values)
    assert_array_equal(values, np.roll(INTS[:128], -32) - np.roll(INTS[:128], -64))


@planted("global_races.cu")
def exchange_within_a_warp(run: Run) -> None:
    out = run.empty(32)
    run(1, 32, run.array(INTS[:32]), run.zeros(32), out)
    assert_array_equal(out, 3 * INTS[np.arange(32) ^ 5])


@planted("global_races.cu")
def message_with_block_fence(run: Run) -> None:
    out = run.empty(1)
    run(2, 32, run.array([30]), run.zeros(1), run.zeros(1), out)
    assert out[0] == 31


@planted("global_races.cu")
def message_without_acquire(run: Run) -> None:
    out = run.empty(1)
    run(2, 32, run.array([30]), run.zeros(1), run.zeros(1), out)
    assert out[0] == 32


@planted("global_races.cu")
def cooperative_too_large(run: Run) -> None:
    blocks = 2 * 108 + 1 if run.bug else 12
    out = run.empty(blocks)
    run(blocks, 1024, run.empty(blocks), out, cooperative=True)
    assert_array_equal(out, np.arange(blocks, 0, -1))
