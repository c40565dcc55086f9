"""Warps, divergence, blocks that wait for each other, deadlocks, and what a seed decides."""

from __future__ import annotations

import numpy as np
import pytest

import emulator

SOURCE = r"""
extern "C" __global__ void order(int* next, int* seen) {
  if (threadIdx.x % 32 == 0) seen[atomicAdd(next, 1)] = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
}
extern "C" __global__ void collatz(int* steps) {
  int n = threadIdx.x + 1, count = 0;
  while (n != 1) {
    n = n % 2 ? 3 * n + 1 : n / 2;
    ++count;
  }
  steps[threadIdx.x] = count;
}
__device__ __noinline__ int ackermann_like(int n, int depth) {
  if (n % 3 == 0) return depth;
  return n % 3 == 1 ? depth * 10 : depth * 100;
}
extern "C" __global__ void early_returns(int* y) {
  y[threadIdx.x] = ackermann_like(threadIdx.x, 7) + ackermann_like(threadIdx.x + 1, 1);
}
// Block i waits for block i + 1: wants them resident together.
extern "C" __global__ void chain(volatile int* flags, int n) {
  int me = blockIdx.x;
  if (me + 1 < n) {
    while (flags[me + 1] == 0) {}
  }
  __threadfence();
  flags[me] = 1;
}
extern "C" __global__ void never(volatile int* flag) {
  while (*flag == 0) {}
}
extern "C" __global__ void half_waits() {
  if (threadIdx.x < 32) __syncthreads();
  else asm volatile("bar.sync 1, 64;");
}
// A lock that another lane of the warp may hold: lanes must make progress independently.
extern "C" __global__ void locked_count(int* lock, int* count) {
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *(volatile int*)count = *(volatile int*)count + 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}
"""


@pytest.fixture(scope="module")
def ptx() -> str:
    return str(emulator.compile_cuda(SOURCE, "sm_80"))


def _order(ptx: str, seed: int, **options: object) -> list[int]:
    gpu = emulator.Gpu("A100", seed=seed, host_threads=1, **options)
    seen = gpu.empty(4 * 8, np.int32)
    gpu.load(ptx)["order"](8, 128, gpu.zeros(1, np.int32), seen)
    return seen.tolist()


def test_a_seed_is_an_order(ptx: str) -> None:
    orders = [_order(ptx, seed) for seed in range(6)]
    assert all(sorted(order) == list(range(32)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert orders[3] == _order(ptx, 3)


def test_counts_repeat_with_the_seed(ptx: str) -> None:
    def counts() -> dict[str, object]:
        gpu = emulator.Gpu("A100", seed=5, host_threads=1)
        return gpu.load(ptx)["collatz"](1, 200, gpu.empty(200, np.int32)).counters.to_dict()

    assert counts() == counts()


@pytest.mark.parametrize("checks", [True, False])
def test_loops_of_different_length_meet_again(ptx: str, checks: bool) -> None:
    gpu = emulator.Gpu("A100", checks=checks)
    steps = gpu.empty(300, np.int32)
    gpu.load(ptx)["collatz"](1, 300, steps)

    def collatz(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
        return count

    assert steps.tolist() == [collatz(n) for n in range(1, 301)]


def test_calls_return_each_lane_to_its_caller(ptx: str) -> None:
    gpu = emulator.Gpu("A100")
    y = gpu.empty(64, np.int32)
    gpu.load(ptx)["early_returns"](1, 64, y)
    factor = [1, 10, 100]
    assert y.tolist() == [7 * factor[i % 3] + factor[(i + 1) % 3] for i in range(64)]


@pytest.mark.parametrize("host_threads", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_that_wait_for_each_other(ptx: str, seed: int, host_threads: int) -> None:
    gpu = emulator.Gpu("A100", seed=seed, host_threads=host_threads)
    flags = gpu.zeros(12, np.int32)
    gpu.load(ptx)["chain"](12, 1, flags, 12)
    assert flags.tolist() == [1] * 12


def test_polling_for_nothing_is_a_deadlock(ptx: str) -> None:
    gpu = emulator.Gpu("A100", hang_limit=100_000)
    with pytest.raises(emulator.Fault) as caught:
        gpu.load(ptx)["never"](1, 32, gpu.zeros(1, np.int32))
    assert caught.value.kind == "deadlock"
    assert "while (*flag == 0)" in SOURCE.splitlines()[caught.value.line - 1]


def test_a_deadlock_lists_every_warp_and_barrier(ptx: str) -> None:
    gpu = emulator.Gpu("A100")
    with pytest.raises(emulator.Fault) as caught:
        gpu.load(ptx)["half_waits"](1, 64)
    assert caught.value.kind == "deadlock"
    assert "warp 0" in caught.value.details
    assert "warp 1" in caught.value.details
    assert "barrier 1: 32 of 64 threads arrived" in caught.value.details


@pytest.mark.parametrize("seed", range(4))
def test_lanes_of_a_warp_make_progress_independently(ptx: str, seed: int) -> None:
    gpu = emulator.Gpu("A100", seed=seed)
    count = gpu.zeros(1, np.int32)
    gpu.load(ptx)["locked_count"](2, 32, gpu.zeros(1, np.int32), count)
    assert count[0] == 64


SLEEPING = r"""
// Each block waits, asleep between polls, for the block before it, which may run on another host thread.
extern "C" __global__ void relay(int* flags) {
  int me = blockIdx.x;
  if (me > 0) {
    while (atomicAdd(&flags[me - 1], 0) == 0) __nanosleep(100);
    __threadfence();
  }
  int sum = 0;
  for (int k = 0; k < 20000; ++k) sum += k ^ me;
  if (sum == 42) flags[me] = 7;
  __threadfence();
  atomicExch(&flags[me], 1);
}
"""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("host_threads", [1, 2])
def test_sleeping_until_another_block_has_come(host_threads: int, seed: int) -> None:
    gpu = emulator.Gpu("A100", seed=seed, host_threads=host_threads)
    flags = gpu.zeros(6, np.int32)
    gpu.load(emulator.compile_cuda(SLEEPING, "sm_80"))["relay"](6, 1, flags)
    assert flags.tolist() == [1] * 6


INLINED = r"""
__device__ __forceinline__ int innermost(const int* x, int i) {
  return x[i];
}
__device__ __forceinline__ int between(const int* x, int i) {
  return innermost(x, i + 1) * 2;
}
extern "C" __global__ void outermost(const int* x, int* y) {
  y[threadIdx.x] = between(x, threadIdx.x);
}
"""


def test_a_report_has_every_call_that_was_inlined() -> None:
    gpu = emulator.Gpu("A100")
    kernel = gpu.load(emulator.compile_cuda(INLINED, "sm_80"))["outermost"]
    x, y = gpu.zeros(32, np.int32), gpu.empty(32, np.int32)
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 32, x, y)
    fault = caught.value
    assert (fault.kind, fault.line, fault.caller_line) == ("out_of_bounds", 3, 9)
    assert fault.details.endswith(".cu:6")


MANY_BARRIERS = r"""
// More barriers than the clocks can count.
extern "C" __global__ void ping_pong(int* y, int rounds) {
  __shared__ int s[64];
  int mine = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    s[threadIdx.x] = mine;
    y[threadIdx.x] = mine;
    __syncthreads();
    mine = s[63 - threadIdx.x] + y[63 - threadIdx.x] - mine;
    __syncthreads();
  }
  y[threadIdx.x] = mine;
}
"""


def test_more_barriers_than_the_clocks_count() -> None:
    gpu = emulator.Gpu("A100")
    y = gpu.empty(64, np.int32)
    gpu.load(emulator.compile_cuda(MANY_BARRIERS, "sm_80"))["ping_pong"](1, 64, y, 70_000)
    expected = np.arange(64)
    for _ in range(70_000):
        expected = 2 * expected[::-1] - expected
    np.testing.assert_array_equal(y, expected.astype(np.int32))
