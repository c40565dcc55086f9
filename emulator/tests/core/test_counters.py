"""Counters against numbers that follow from the access pattern on paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import emulator

SOURCE = r"""
extern "C" __global__ void copy(const float* x, float* y, int stride) {
  int i = threadIdx.x + blockIdx.x * blockDim.x;
  y[i] = x[i * stride];
}
extern "C" __global__ void shared_columns(float* y, int stride) {
  __shared__ float s[32 * 33];
  s[threadIdx.x * stride] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = s[(threadIdx.x ^ 1) * stride];
}
extern "C" __global__ void shared_vectors(float4* y) {
  __shared__ float4 s[32];
  s[threadIdx.x] = make_float4(1, 2, 3, threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void broadcast(float* y) {
  __shared__ float s[4];
  if (threadIdx.x < 4) s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x & 1];
}
extern "C" __global__ void two_paths(int* y) {
  if (threadIdx.x & 1) atomicAdd(y, 1);
  else atomicMax(y + 1, 5);
}
"""


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return emulator.Gpu("A100").load(emulator.compile_cuda(SOURCE, "sm_80"))


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32)])
def test_sectors_of_a_strided_read(module: emulator.Module, stride: int, sectors: int) -> None:
    x = module.gpu.array(np.arange(128 * stride, dtype=np.float32))
    y = module.gpu.empty(128, np.float32)
    launch = module["copy"](2, 64, x, y, stride)
    np.testing.assert_array_equal(y, x[::stride])
    loads = [k for k in launch.instructions() if k.opcode.startswith("ld.global")]
    assert sum(k.counters.global_requests for k in loads) == 4
    assert sum(k.counters.global_sectors for k in loads) == 4 * sectors
    assert sum(k.counters.global_sectors_ideal for k in loads) == 4 * 4
    assert launch.counters.distinct_sectors_written == 16
    assert launch.counters.distinct_sectors_read == 4 * sectors


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (32, 32), (33, 1)])
def test_bank_conflicts(module: emulator.Module, stride: int, wavefronts: int) -> None:
    y = module.gpu.empty(32, np.float32)
    launch = module["shared_columns"](1, 32, y, stride)
    assert launch.counters.shared_requests == 2
    assert launch.counters.shared_wavefronts == 2 * wavefronts
    assert launch.counters.shared_wavefronts_ideal == 2


def test_vectors_of_16_bytes_need_four_wavefronts(module: emulator.Module) -> None:
    launch = module["shared_vectors"](1, 32, module.gpu.empty((32, 4), np.float32))
    assert launch.counters.shared_wavefronts == launch.counters.shared_wavefronts_ideal == 8
    assert launch.counters.bank_conflicts == 0


def test_a_word_for_many_lanes_is_one_wavefront(module: emulator.Module) -> None:
    launch = module["broadcast"](1, 64, module.gpu.empty(64, np.float32))
    assert launch.counters.shared_wavefronts == 3  # one store, two loads
    assert launch.counters.barriers == 2


def test_divergence_is_counted_once_per_warp(module: emulator.Module) -> None:
    y = module.gpu.zeros(2, np.int32)
    launch = module["two_paths"](1, 64, y)
    assert y.tolist() == [32, 5]
    assert launch.counters.divergent_branches == 2
    assert launch.counters.global_atomics == 64


def test_lines_and_json_agree_with_the_totals(module: emulator.Module) -> None:
    y = module.gpu.empty(64, np.float32)
    launch = module["broadcast"](1, 64, y)
    lines = launch.lines()
    assert sum(line.counters.warp_instructions for line in lines) == launch.counters.warp_instructions
    assert {Path(line.file).suffix for line in lines} == {".cu"}
    record = json.loads(launch.to_json())
    assert record["kernel"] == "broadcast"
    assert record["counters"]["shared_wavefronts"] == 3


def test_counters_off() -> None:
    gpu = emulator.Gpu("A100", counters=False)
    launch = gpu.load(emulator.compile_cuda(SOURCE, "sm_80"))["broadcast"](1, 64, gpu.empty(64, np.float32))
    assert launch.counters.warp_instructions > 0
    assert launch.counters.shared_requests == 0
    assert launch.lines() == []


ASYNC_SOURCE = r"""
extern "C" __global__ void copy_async(const float4* x, float* y, int stride) {
  __shared__ float4 s[32 * 9];
  unsigned to = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x * stride]);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(x + threadIdx.x) : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  y[threadIdx.x] = s[threadIdx.x * stride].x;
}
"""


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 4), (2, 8), (8, 32), (9, 4)])
def test_destinations_of_asynchronous_copies(stride: int, wavefronts: int) -> None:
    gpu = emulator.Gpu("A100")
    kernel = gpu.load(emulator.compile_cuda(ASYNC_SOURCE, "sm_80"))["copy_async"]
    x = gpu.array(np.arange(128, dtype=np.float32))
    y = gpu.empty(32, np.float32)
    launch = kernel(1, 32, x, y, stride)
    np.testing.assert_array_equal(y, x[::4])
    (copy,) = [k for k in launch.instructions() if k.opcode.startswith("cp.async.cg")]
    assert copy.counters.shared_wavefronts == wavefronts
    assert copy.counters.shared_wavefronts_ideal == 4
    assert copy.counters.global_sectors == 16
