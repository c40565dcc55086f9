"""CUB's device-wide algorithms against NumPy: CUB's host code runs on the stand-in of the CUDA runtime."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

import emulator

SOURCE = Path(__file__).parent / "cuda_headers" / "cub_device.cu"
LIBRARIES = Path(emulator.__file__).parent
ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])
N = 20_000


@pytest.fixture
def make_lenient_gpu(make_gpu):
    """CUB passes on the registers of threads beyond the end of the input, which nothing has written, and its merge
    reads the element after a run; it uses neither."""

    def make(arch, seed=0):
        return make_gpu(arch, seed, uninitialised=False)

    return make


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    """The launchers as shared libraries by architecture, linked with the stand-in; PTX for both is inside."""
    nvcc, linker = emulator.nvcc(), shutil.which("g++")
    if nvcc is None or linker is None:
        pytest.skip("needs nvcc and g++")
    flags = ["-std=c++17", "-O2", "-cudart", "none", "--no-compress", "-Xcompiler", "-fPIC,-fno-gnu-unique"]
    flags += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ("80", "90a")]
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(version + repr(flags).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    compiled = Path(tempfile.gettempdir()) / f"vgpu_oracles_{os.getuid()}" / f"cub_device_{key}.o"
    folder = tmp_path_factory.mktemp("cub")
    if not compiled.exists():
        compiled.parent.mkdir(exist_ok=True)
        subprocess.run([nvcc, *flags, "-c", SOURCE, "-o", folder / "fresh.o"], check=True)
        shutil.move(folder / "fresh.o", compiled)
    stand_in = [LIBRARIES / "libvgpu_cudart.a", f"-L{LIBRARIES}", "-lvgpu", f"-Wl,-rpath,{LIBRARIES}", "-Wl,-Bsymbolic"]
    # CUB remembers what it learnt of device 0, so every chip needs a copy of its own (-fno-gnu-unique).
    libraries = {80: folder / "sm_80.so", 90: folder / "sm_90.so"}
    for library in libraries.values():
        subprocess.run([linker, "-shared", "-o", library, compiled, *stand_in], check=True)
    return {arch: ctypes.CDLL(str(library)) for arch, library in libraries.items()}


def call(gpu, function, *arguments):
    """Asks for the temporary memory, then runs."""

    def run(temporary, size):
        values = [temporary, ctypes.byref(size)]
        for argument in arguments:
            values.append(ctypes.c_void_p(argument.ctypes.data) if isinstance(argument, np.ndarray) else argument)
        with gpu:  # raises the kernel's fault
            status = function(*values)
        assert status == 0, f"cudaError_t {status}"

    size = ctypes.c_size_t(0)
    run(None, size)
    temporary = gpu.empty(max(size.value, 1), np.uint8)
    run(ctypes.c_void_p(temporary.ctypes.data), size)
    assert gpu.launches, "CUB launched nothing"


@ARCHES
@SEEDS
def test_reduce(make_lenient_gpu, cub, arch, seed):
    gpu = make_lenient_gpu(arch, seed)
    x = np.random.default_rng(1).integers(-(2**31), 2**31, N, dtype=np.int64).astype(np.int32)
    out = gpu.empty(1, np.int64)
    call(gpu, cub[arch].device_sum, gpu.array(x), out, N)
    assert out[0] == x.sum(dtype=np.int64)


@ARCHES
def test_argmax(make_lenient_gpu, cub, arch):
    gpu = make_lenient_gpu(arch)
    x = np.random.default_rng(2).integers(0, 500, N).astype(np.float32)
    value, index = gpu.empty(1), gpu.empty(1, np.int64)
    call(gpu, cub[arch].device_argmax, gpu.array(x), value, index, N)
    assert (value[0], index[0]) == (x.max(), x.argmax())


@ARCHES
@SEEDS
def test_exclusive_sum(make_lenient_gpu, cub, arch, seed):
    """Blocks look back at those before them, which may not have finished."""
    gpu = make_lenient_gpu(arch, seed)
    x = np.random.default_rng(3).integers(-1000, 1000, N).astype(np.int32)
    out = gpu.empty(N, np.int32)
    call(gpu, cub[arch].device_exclusive_sum, gpu.array(x), out, N)
    np.testing.assert_array_equal(out, np.cumsum(x) - x)


@ARCHES
@SEEDS
@pytest.mark.parametrize("n", [3000, N])
def test_radix_sort(make_lenient_gpu, cub, arch, seed, n):
    gpu = make_lenient_gpu(arch, seed)
    keys = np.random.default_rng(4).integers(0, 2**12, n).astype(np.uint32) << np.uint32(13)
    values = np.arange(n, dtype=np.int32)
    keys_out, values_out = gpu.empty(n, np.uint32), gpu.empty(n, np.int32)
    call(gpu, cub[arch].device_radix_sort_pairs, gpu.array(keys), keys_out, gpu.array(values), values_out, n)
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(keys_out, keys[order])
    np.testing.assert_array_equal(values_out, order)


@ARCHES
@SEEDS
def test_merge_sort(make_lenient_gpu, cub, arch, seed):
    gpu = make_lenient_gpu(arch, seed)
    x = np.random.default_rng(5).standard_normal(9000).astype(np.float32)
    keys = gpu.array(x)
    call(gpu, cub[arch].device_merge_sort, keys, x.size)
    np.testing.assert_array_equal(keys, np.sort(x))


@ARCHES
@SEEDS
def test_select(make_lenient_gpu, cub, arch, seed):
    gpu = make_lenient_gpu(arch, seed)
    x = np.random.default_rng(6).integers(-100, 100, N).astype(np.int32)
    out, count = gpu.empty(N, np.int32), gpu.empty(1, np.int32)
    call(gpu, cub[arch].device_select_positive, gpu.array(x), out, count, N)
    kept = x[x > 0]
    assert count[0] == kept.size
    np.testing.assert_array_equal(out[: kept.size], kept)


@ARCHES
@SEEDS
def test_histogram(make_lenient_gpu, cub, arch, seed):
    gpu = make_lenient_gpu(arch, seed)
    x = np.random.default_rng(7).integers(-10, 110, N).astype(np.float32)
    bins = gpu.empty(50, np.int32)
    call(gpu, cub[arch].device_histogram, gpu.array(x), bins, 51, ctypes.c_float(0), ctypes.c_float(100), N)
    # A sample at the upper bound is in no bin.
    inside = x[(x >= 0) & (x < 100)]
    np.testing.assert_array_equal(bins, np.bincount((inside / 2).astype(int), minlength=50))


@ARCHES
@SEEDS
def test_run_lengths(make_lenient_gpu, cub, arch, seed):
    gpu = make_lenient_gpu(arch, seed)
    rng = np.random.default_rng(8)
    x = np.repeat(rng.integers(0, 9, 6000), rng.integers(1, 6, 6000))[: N // 2].astype(np.int32)
    values, lengths, runs = gpu.empty(x.size, np.int32), gpu.empty(x.size, np.int32), gpu.empty(1, np.int32)
    call(gpu, cub[arch].device_run_lengths, gpu.array(x), values, lengths, runs, x.size)
    starts = np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1]]))
    assert runs[0] == starts.size
    np.testing.assert_array_equal(values[: starts.size], x[starts])
    np.testing.assert_array_equal(lengths[: starts.size], np.diff(np.append(starts, x.size)))


@ARCHES
def test_segmented_sum(make_lenient_gpu, cub, arch):
    gpu = make_lenient_gpu(arch)
    rng = np.random.default_rng(9)
    x = rng.integers(-1000, 1000, 5000).astype(np.int32)
    offsets = np.sort(np.concatenate([[0, x.size], rng.integers(0, x.size, 30)])).astype(np.int32)
    out = gpu.empty(31, np.int32)
    call(gpu, cub[arch].device_segmented_sum, gpu.array(x), out, 31, gpu.array(offsets))
    totals = np.concatenate([[0], np.cumsum(x)])
    np.testing.assert_array_equal(out, totals[offsets[1:]] - totals[offsets[:-1]])
