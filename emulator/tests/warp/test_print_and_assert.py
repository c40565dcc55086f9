"""printf, assert, trap."""

from __future__ import annotations

import numpy as np
import pytest

import emulator
from emulator.tests.memory.ptx_text import entry, fault_kind, module

SOURCE = r"""
#include <cassert>
#include <cstdio>
extern "C" __global__ void formats(const float* x, const char* name) {
  printf("plain\n");
  printf("%d %5d|%-5d|%05d %+d\n", -7, 42, 42, 42, 42);
  printf("%u %x %X %#x %o\n", 4000000000u, 255, 255, 255, 8);
  printf("%lld %llu %lx %ld\n", -1234567890123ll, 18446744073709551615ull, 0xfeedfacecafel, 5l);
  printf("%f %.3f %10.2e %g %G\n", 1.5, 3.14159, 12345.678, 0.0001, 1e20);
  printf("%c%c %s [%8s] [%-8s] [%.2s]\n", 'o', 'k', "text", "right", "left", "cut");
  printf("100%% %*d %.*f\n", 6, 7, 2, 2.71828);
  printf("%f %d %f %s\n", x[0], 1, x[1], name);
  printf("%p\n", (void*)0x1234);
}
extern "C" __global__ void lanes() {
  if (threadIdx.x % 2 == 1) printf("thread %d\n", threadIdx.x);
}
extern "C" __global__ void check(const int* x) {
  assert(x[threadIdx.x] < 10 && "small");
}
extern "C" __global__ void stop(int n) {
  if (threadIdx.x == n) __trap();
}
extern "C" __global__ void heap(int** out) { *out = (int*)malloc(4); }
"""

pytestmark = pytest.mark.skipif(emulator.nvcc() is None, reason="no nvcc")


@pytest.fixture(scope="module")
def source() -> str:
    return str(emulator.compile_cuda(SOURCE, "sm_80"))


def test_formats(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = emulator.Gpu()
    name = gpu.array(np.frombuffer(b"host memory\0", np.uint8))
    gpu.load(source)["formats"](1, 1, np.array([0.5, -2], np.float32), name)
    assert capsys.readouterr().out.splitlines() == [
        "plain",
        "-7    42|42   |00042 +42",
        "4000000000 ff FF 0xff 10",
        "-1234567890123 18446744073709551615 feedfacecafe 5",
        "1.500000 3.142   1.23e+04 0.0001 1E+20",
        "ok text [   right] [left    ] [cu]",
        "100%      7 2.72",
        "0.500000 1 -2.000000 host memory",
        "0x1234",
    ]


def test_each_active_lane_prints(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    emulator.Gpu().load(source)["lanes"](1, 8)
    assert sorted(capsys.readouterr().out.splitlines()) == [f"thread {k}" for k in (1, 3, 5, 7)]


def test_a_string_out_of_bounds(source: str) -> None:
    gpu = emulator.Gpu()
    name = gpu.array(np.full(8, ord("x"), np.uint8))
    with pytest.raises(emulator.Fault) as caught:
        gpu.load(source)["formats"](1, 1, np.array([0.5, -2], np.float32), name)
    assert fault_kind(caught) == "out_of_bounds"


def test_assert(source: str) -> None:
    gpu = emulator.Gpu()
    values = np.arange(16, dtype=np.int32)
    values[10:] = 0
    gpu.load(source)["check"](1, 16, values)
    values[13] = 10
    with pytest.raises(emulator.Fault, match=r"assertion x\[threadIdx.x\] < 10 && \"small\" failed: .*:\d+") as caught:
        gpu.load(source)["check"](1, 16, values)
    assert fault_kind(caught) == "trap"
    assert caught.value.thread[0] == 13


def test_trap(source: str) -> None:
    kernel = emulator.Gpu().load(source)["stop"]
    kernel(1, 32, 99)
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 32, 5)
    assert fault_kind(caught) == "trap"
    assert caught.value.lane == 5


def test_the_heap_is_not_modelled(source: str) -> None:
    gpu = emulator.Gpu()
    with pytest.raises(emulator.Fault, match="malloc") as caught:
        gpu.load(source)["heap"](1, 1, gpu.zeros(1, np.uint64))
    assert fault_kind(caught) == "unsupported"


def test_instructions_that_do_nothing() -> None:
    text = module(entry("k", "pmevent 3;\npmevent.mask 3;\nnanosleep.u32 20;\nbrkpt;", pointers=0))
    emulator.Gpu().load(text)["k"](1, 32)
