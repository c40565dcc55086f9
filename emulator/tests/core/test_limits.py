"""What a chip refuses before a kernel starts."""

from __future__ import annotations

import numpy as np
import pytest

import emulator

SOURCE = r"""
extern "C" __global__ void plain(int* y) { y[threadIdx.x] = 1; }
extern "C" __global__ void __launch_bounds__(64) bounded(int* y) { y[threadIdx.x] = 1; }
extern "C" __global__ void dynamic(int* y) {
  extern __shared__ int s[];
  s[threadIdx.x] = 1;
  y[threadIdx.x] = s[threadIdx.x];
}
"""


@pytest.mark.parametrize(
    ("kernel", "grid", "block", "options", "message"),
    [
        ("plain", 1, 1025, {}, "1024 threads"),
        ("plain", 0, 32, {}, "nothing"),
        ("plain", (1, 70000), 32, {}, "too large"),
        ("bounded", 1, 128, {}, "launch bounds"),
        ("dynamic", 1, 32, {"shared_bytes": 164 * 1024}, "shared memory"),
        ("plain", 3, 32, {"cluster": 2}, "cluster"),
    ],
)
def test_refused(kernel: str, grid: object, block: int, options: dict[str, object], message: str) -> None:
    gpu = emulator.Gpu("A100")
    module = gpu.load(emulator.compile_cuda(SOURCE, "sm_80"))
    with pytest.raises(emulator.Fault, match=message) as caught:
        module[kernel](grid, block, gpu.empty(1024, np.int32), **options)
    assert caught.value.kind == "launch_limit"


def test_as_much_as_the_chip_has() -> None:
    for name, kilobytes in (("A100", 163), ("RTX 4090", 99), ("H100", 227)):
        gpu = emulator.Gpu(name)
        module = gpu.load(emulator.compile_cuda(SOURCE, "sm_80"))
        module["dynamic"](1, 32, gpu.empty(32, np.int32), shared_bytes=kilobytes * 1024)
        with pytest.raises(emulator.Fault, match="shared memory"):
            module["dynamic"](1, 32, gpu.empty(32, np.int32), shared_bytes=kilobytes * 1024 + 16)


@pytest.mark.parametrize(("chip", "arch"), [("A100", "sm_90"), ("B200", "sm_90a")])
def test_ptx_of_a_newer_or_another_architecture(chip: str, arch: str) -> None:
    gpu = emulator.Gpu(chip)
    kernel = gpu.load(emulator.compile_cuda(SOURCE, arch))["plain"]
    y = gpu.empty(32, np.int32)
    with pytest.raises(emulator.Fault, match=f"does not run on {chip}"):
        kernel(1, 32, y)
