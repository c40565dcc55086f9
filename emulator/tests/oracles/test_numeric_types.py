"""Functions of the fp16, bf16 and fp8 headers on the device, against the same headers on the host."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import emulator
from emulator.tests.oracles.formats import assert_within_ulp, decode, encode

ARCHES = pytest.mark.parametrize("arch", [80, 90])
FOLDER = Path(__file__).parent / "cuda_headers"
SCALAR_RESULTS, PACKED_RESULTS, CONVERSION_RESULTS = 30, 18, 24


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The functions compiled for this machine."""
    compiler, nvcc = shutil.which("g++"), emulator.nvcc()
    if compiler is None or nvcc is None:
        pytest.skip("needs g++ and the CUDA headers")
    library = tmp_path_factory.mktemp("host") / "numeric_types.so"
    folders = [nvcc.resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    include = next((path for path in folders if (path / "cuda_fp8.h").exists()), None)
    if include is None:
        pytest.skip(f"no CUDA headers in {' or '.join(map(str, folders))}")
    # Contraction would fuse what the headers compute in two steps.
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([compiler, *flags, FOLDER / "numeric_types_host.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


def call(function, *arguments):
    function(*(arg.ctypes.data_as(ctypes.c_void_p) if isinstance(arg, np.ndarray) else arg for arg in arguments))


def patterns(kind, n, seed):
    """Ordinary numbers, subnormal ones, zeros of both signs, infinities, NaN, and neighbours of ties."""
    rng = np.random.default_rng(seed)
    values = encode(rng.standard_normal(n) * np.exp2(rng.integers(-6, 7, n)), kind)
    infinity = {"fp16": 0x7C00, "bf16": 0x7F80}[kind]
    special = np.array(
        [0, 0x8000, 1, 0x8001, 0x03FF, infinity, infinity | 0x8000, infinity - 1, infinity + 1], np.uint16
    )
    values[: n // 3] = rng.choice(special, n // 3)
    values[n // 3 : n // 2] = rng.integers(0, 2**16, n // 2 - n // 3, dtype=np.uint16)
    return rng.permutation(values)


def assert_same(actual, expected, kind, unsigned_zeros=()):
    """Equal patterns, where any NaN is as good as another, and zeros in the columns `unsigned_zeros`."""
    nan = np.isnan(decode(expected, kind))
    np.testing.assert_array_equal(np.isnan(decode(actual, kind)), nan)
    for column in unsigned_zeros:
        for array in (actual, expected):
            array[array[:, column] == 0x8000, column] = 0
    columns = np.nonzero(((actual != expected) & ~nan).any(0))[0]
    assert columns.size == 0, f"results {columns.tolist()} differ"


@ARCHES
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize(("form", "width"), [("scalar", SCALAR_RESULTS), ("packed", 2 * PACKED_RESULTS)])
@pytest.mark.parametrize("debug", [False, True], ids=["release", "debug"])
def test_arithmetic(load_cuda, host, arch, kind, form, width, debug):
    n = 1500
    gpu, module = load_cuda("numeric_types", arch, debug=debug)
    a, b, c = (patterns(kind, n, seed) for seed in range(3))
    out = gpu.empty((n, width), np.uint16)
    name = f"{form}_{kind}"
    module[name](-(-n // 128), 128, gpu.array(a), gpu.array(b), gpu.array(c), out, n)
    expected = np.zeros((n, width), np.uint16)
    call(host[name], a, b, c, expected, n)
    # bf16's maxima and minima that keep NaN take either zero for the larger on the host.
    unsigned_zeros = {"scalar": (21, 22), "packed": (16, 17)}[form] if kind == "bf16" else ()
    assert_same(np.array(out), expected, kind, unsigned_zeros)


@ARCHES
def test_conversions(load_cuda, host, arch):
    n = 1500
    gpu, module = load_cuda("numeric_types", arch)
    rng = np.random.default_rng(4)
    x = (rng.standard_normal(n) * np.exp2(rng.integers(-30, 30, n))).astype(np.float32)
    x[: n // 2] = (rng.standard_normal(n // 2) * 4).astype(np.float32)
    # Ties between neighbours of fp16, bf16 and both fp8 formats.
    x[:300] = np.round(x[:300] * 64) / 64
    x[300:400] = rng.integers(-(2**15), 2**15, 100) * np.float32(2.0**-8)
    x[400:404] = [0.0, -0.0, np.inf, -np.inf]
    integers = rng.integers(-(2**40), 2**40, n) >> rng.integers(0, 40, n)
    out = gpu.empty((n, CONVERSION_RESULTS), np.uint64)
    module["conversions"](-(-n // 128), 128, gpu.array(x), gpu.array(integers), out, n)
    expected = np.zeros((n, CONVERSION_RESULTS), np.uint64)
    call(host["conversions"], x, integers, expected, n)
    wrong = np.nonzero((out != expected).any(0))[0]
    assert wrong.size == 0, f"results {wrong.tolist()} differ"


@ARCHES
def test_widening_of_fp8(load_cuda, arch):
    gpu, module = load_cuda("numeric_types", arch)
    halves, floats = gpu.empty((2, 256), np.uint16), gpu.empty((2, 256))
    module["widen_fp8"](1, 256, halves, floats)
    every = np.arange(256, dtype=np.uint8)
    expected = np.stack([decode(every, kind) for kind in ("fp8e4nv", "fp8e5")])
    np.testing.assert_array_equal(decode(halves, "fp16"), expected)
    np.testing.assert_array_equal(floats, expected)


@ARCHES
def test_approximations(load_cuda, arch):
    n = 1000
    gpu, module = load_cuda("numeric_types", arch)
    x = np.exp2(np.random.default_rng(5).uniform(-6, 3, n)).astype(np.float16)
    out = gpu.empty((n, 8), np.float16)
    module["approximations"](8, 128, gpu.array(x), out, n)
    v = x.astype(np.float64)
    expected = [np.exp(v), np.exp2(v), np.log(v), np.log2(v), np.sqrt(v), 1 / np.sqrt(v), 1 / v, v / 3]
    # fp32 approximations rounded to fp16: a tie may fall either way.
    for row, want in enumerate(expected):
        assert_within_ulp(np.array(out[:, row]), want, 0.51, absolute=2.0**-14)


@ARCHES
@pytest.mark.parametrize("seed", [0, 1])
def test_atomics(load_cuda, arch, seed):
    n = 96
    gpu, module = load_cuda("numeric_types", arch, seed)
    rng = np.random.default_rng(6)
    h, b = rng.integers(-1, 2, n).astype(np.float64), rng.integers(-1, 2, n).astype(np.float64)
    sums = [gpu.zeros(size, np.uint16) for size in (2, 2, 1, 1)]
    module["atomics"](3, 32, gpu.array(encode(h, "fp16")), gpu.array(encode(b, "bf16")), *sums)
    decoded = [decode(array, kind) for array, kind in zip(sums, ("fp16", "bf16", "fp16", "bf16"), strict=True)]
    np.testing.assert_array_equal(decoded[0], [h.sum(), -h.sum()])
    np.testing.assert_array_equal(decoded[1], [b.sum(), -b.sum()])
    np.testing.assert_array_equal(decoded[2], [h.sum()])
    np.testing.assert_array_equal(decoded[3], [b.sum()])


@ARCHES
def test_shuffles(load_cuda, arch):
    gpu, module = load_cuda("numeric_types", arch)
    x = np.arange(64, dtype=np.float64).reshape(32, 2)
    out = gpu.empty((32, 2), np.uint16)
    module["warp_shuffles"](1, 32, gpu.array(encode(x, "fp16")), out)
    lane = np.arange(32)
    down = np.where(lane + 3 < 32, lane + 3, lane)
    np.testing.assert_array_equal(decode(out, "fp16"), x[lane ^ 5] + x[down])
