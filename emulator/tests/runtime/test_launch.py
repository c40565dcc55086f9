"""Launches through <<<>>>: arguments, limits, clusters, choice of the PTX."""

import ctypes
import subprocess

import numpy as np
import pytest

import emulator

INVALID_VALUE, INVALID_CONFIGURATION, NO_IMAGE, TOO_LARGE, BAD_CLUSTER = 1, 9, 209, 720, 912


def test_launch_passes_pointers_and_numbers(lib, gpu):
    x, y = gpu.array(np.arange(1000, dtype=np.float32)), gpu.array(np.full(1000, 2, np.float32))
    out = gpu.empty(1000)
    assert lib.run_add(x, y, out, 1000, None) == 0
    np.testing.assert_array_equal(out, x + 2)
    assert gpu.launches[-1].kernel == "add"
    assert gpu.launches[-1].grid == (8, 1, 1)


def test_structs_and_small_integers(lib, gpu):
    out = gpu.empty(4, np.float64)
    assert lib.run_struct(out) == 0
    assert out.tolist() == [ord("A"), 2.5, 3, -4]


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((1, 1, 1, 1024, 1, 1), 0),
        ((1, 1, 1, 16, 8, 8), 0),
        ((0, 1, 1, 1, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1, 0, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1, 1025, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1, 32, 32, 2), INVALID_CONFIGURATION),
        ((1, 1, 1, 1, 1, 65), INVALID_CONFIGURATION),
        ((1, 65536, 1, 1, 1, 1), INVALID_CONFIGURATION),
    ],
)
def test_shapes(lib, gpu, shape, error):
    assert lib.run_nothing(*shape) == error
    assert lib.last_error() == 0, "a refused launch is not sticky"


def test_launch_bounds(lib, gpu):
    out = gpu.empty(1, np.int32)
    assert lib.run_bounded(out, 129) == INVALID_VALUE
    assert b"launch bounds of bounded allow 128" in lib.error_string(INVALID_VALUE)
    numbers = (ctypes.c_int * 4)()
    assert lib.function_attributes(numbers) == 0
    assert list(numbers) == [128, 0, 90, 90]


def test_shared_memory_wants_opting_in(fresh_lib):
    lib = fresh_lib
    with emulator.Gpu("H100") as gpu:
        out = gpu.empty(1, np.int32)
        assert lib.run_dynamic_shared(out, 48 * 1024, 0) == 0
        assert out[0] == 48 * 256 - 1
        assert lib.run_dynamic_shared(out, 48 * 1024 + 4, 0) == INVALID_VALUE
        assert b"cudaFuncAttributeMaxDynamicSharedMemorySize" in lib.error_string(INVALID_VALUE)
        assert lib.run_dynamic_shared(out, 100 * 1024, 100 * 1024) == 0
        assert out[0] == 100 * 256 - 1
        assert lib.run_dynamic_shared(out, 100 * 1024 + 4, 0) == INVALID_VALUE
        assert lib.run_dynamic_shared(out, 1024, 227 * 1024) == 0
        assert lib.run_dynamic_shared(out, 1024, 227 * 1024 + 1) == INVALID_VALUE
    with emulator.Gpu("A100") as gpu:
        out = gpu.empty(1, np.int32)
        assert lib.run_dynamic_shared(out, 1024, 164 * 1024) == INVALID_VALUE


@pytest.mark.parametrize(
    ("chip", "blocks", "cluster", "non_portable", "error"),
    [
        ("H100", 8, 4, 0, 0),
        ("H100", 8, 8, 0, 0),
        ("H100", 16, 16, 0, BAD_CLUSTER),
        ("H100", 16, 16, 1, 0),
        ("H100", 6, 4, 0, BAD_CLUSTER),
        ("H100", 4, 0, 0, BAD_CLUSTER),
        ("A100", 4, 2, 0, BAD_CLUSTER),
        ("A100", 4, 1, 0, 0),
    ],
)
def test_clusters(lib, chip, blocks, cluster, non_portable, error):
    with emulator.Gpu(chip) as gpu:
        out = gpu.empty(blocks, np.uint32)
        assert lib.run_cluster(out, blocks, cluster, non_portable, 1) == error
        if error == 0 and chip == "H100":
            assert out.tolist() == [100 * (i % cluster) + cluster for i in range(blocks)]
            assert gpu.launches[-1].cluster == (cluster, 1, 1)


def test_cooperative_launches_must_be_resident(lib, gpu):
    assert lib.run_cooperative(264) == 0  # 132 multiprocessors of 2048 threads
    assert lib.run_cooperative(265) == TOO_LARGE


@pytest.mark.parametrize(
    ("chip", "architecture"), [("A100", 800), ("RTX 4090", 800), ("H100", 900), ("B200", 800), ("H200", 900)]
)
def test_each_chip_gets_its_best_ptx(lib, chip, architecture):
    with emulator.Gpu(chip) as gpu:
        out = gpu.empty(1, np.int32)
        assert lib.run_architecture(out) == 0
        assert out[0] == architecture


def test_the_chip_may_change(lib, gpu):
    out = gpu.empty(1, np.int32)
    for chip, architecture in (("H100", 900), ("A100", 800), ("H100", 900)):
        gpu.chip = chip
        assert lib.run_architecture(out) == 0
        assert out[0] == architecture


def test_the_stand_in_stays_inside_the_library(library):
    symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    assert "cudaLaunchKernel" not in symbols
    assert "run_add" in symbols


def test_no_ptx_for_the_chip(build_text):
    lib = build_text(
        """#include <cuda_runtime.h>
        __global__ void k() {}
        extern "C" int run() { k<<<1, 1>>>(); return cudaGetLastError(); }
        extern "C" const char* error_string(int e) { return cudaGetErrorString(static_cast<cudaError_t>(e)); }
        extern "C" const char* error_name(int e) { return cudaGetErrorName(static_cast<cudaError_t>(e)); }
        """,
        leave_out="compute_80",
    )
    with emulator.Gpu("A100"):
        assert lib.run() == NO_IMAGE
        assert b"sm_90a" in lib.error_string(NO_IMAGE)
        assert lib.error_name(NO_IMAGE) == b"cudaErrorNoKernelImageForDevice"
    with emulator.Gpu("H100"):
        assert lib.run() == 0


def test_per_thread_default_stream(build_text, gpu):
    lib = build_text(
        """#include <cuda_runtime.h>
        __global__ void k(int* p) { *p = 4; }
        extern "C" int run(int* p, int* out) {
          k<<<1, 1>>>(p);
          cudaMemcpy(out, p, 4, cudaMemcpyDeviceToHost);
          return cudaStreamSynchronize(0);
        }
        """,
        "--default-stream=per-thread",
    )
    p, out = gpu.empty(1, np.int32), np.zeros(1, np.int32)
    assert lib.run(p, out) == 0
    assert out[0] == 4
    assert gpu.launches[-1].stream == 2


def test_unknown_functions_do_not_link(build_text):
    with pytest.raises(subprocess.CalledProcessError):
        build_text("""#include <cuda_runtime.h>
        extern "C" int run() { return cudaDeviceReset(); }""")


def test_modules_load_from_a_library(library):
    gpu = emulator.Gpu("A100")
    module = gpu.load(library)
    assert module.target == "sm_80"
    out = gpu.empty(1, np.int32)
    module["architecture"](1, 1, out)
    assert out[0] == 800
