"""The warp matrix API of mma.h against NumPy: exact, because the inputs are on a grid of quarters."""

from __future__ import annotations

import numpy as np
import pytest

from emulator.tests.oracles.formats import decode, encode, grid, raw_dtype

ARCHES = pytest.mark.parametrize("arch", [80, 90])


@ARCHES
@pytest.mark.parametrize("layouts", ["rr", "rc", "cr", "cc"])
@pytest.mark.parametrize(
    ("kernel", "kind", "out_kind", "shape"),
    [
        ("fp16_fp32_16x16", "fp16", "fp32", (16, 16, 16)),
        ("fp16_fp32_32x8", "fp16", "fp32", (32, 8, 16)),
        ("fp16_fp32_8x32", "fp16", "fp32", (8, 32, 16)),
        ("fp16_fp16_16x16", "fp16", "fp16", (16, 16, 16)),
        ("bf16_fp32_16x16", "bf16", "fp32", (16, 16, 16)),
        ("bf16_fp32_32x8", "bf16", "fp32", (32, 8, 16)),
        ("bf16_fp32_8x32", "bf16", "fp32", (8, 32, 16)),
        ("int8_int32_16x16", "i8", "i32", (16, 16, 16)),
        ("int8_int32_32x8", "i8", "i32", (32, 8, 16)),
        ("int8_int32_8x32", "i8", "i32", (8, 32, 16)),
        ("uint8_int32_16x16", "u8", "i32", (16, 16, 16)),
        ("tf32_fp32_16x16", "fp32", "fp32", (16, 16, 8)),
        ("fp64_fp64_8x8", "fp64", "fp64", (8, 8, 4)),
    ],
)
def test_tile(load_cuda, arch, layouts, kernel, kind, out_kind, shape):
    gpu, module = load_cuda("wmma", arch)
    m, n, k = shape
    rng = np.random.default_rng(1)

    def values(shape):
        if kind in ("i8", "u8"):
            info = np.iinfo(raw_dtype(kind))
            return rng.integers(info.min, info.max, shape, endpoint=True).astype(np.float64)
        return grid(rng, shape)

    a, b = values((m, k)), values((k, n))
    c = rng.integers(-8, 9, (m, n)).astype(np.float64)
    out = gpu.empty((n, m), raw_dtype(out_kind))  # stored by columns
    module[f"{kernel}_{layouts}"](
        1,
        32,
        gpu.array(encode(a if layouts[0] == "r" else a.T, kind)),
        gpu.array(encode(b if layouts[1] == "r" else b.T, kind)),
        gpu.array(encode(c, out_kind)),
        out,
    )
    np.testing.assert_array_equal(decode(out, out_kind).T, a @ b + c)


@ARCHES
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("debug", [False, True], ids=["release", "debug"])
def test_matmul(load_cuda, arch, seed, debug):
    gpu, module = load_cuda("wmma", arch, seed, debug=debug)
    m, n, k = 48, 64, 80
    rng = np.random.default_rng(2)
    a, b = grid(rng, (m, k)), grid(rng, (k, n))
    out = gpu.empty((m, n))
    module["matmul"](
        (n // 16, m // 16), 32, gpu.array(encode(a, "fp16")), gpu.array(encode(b, "fp16")), out, m, n, k, 0.5
    )
    np.testing.assert_array_equal(out, 0.5 * (a @ b))
