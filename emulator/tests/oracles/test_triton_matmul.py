"""Triton's matrix products through pointers against NumPy: exact, because the inputs are on a grid of quarters."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")
import triton.language as tl

from emulator.tests.oracles.formats import HALF_ULP, decode, encode, grid, raw_dtype
from emulator.tests.oracles.triton_compile import compile_kernel
from emulator.tests.oracles.triton_kernels import matmul

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])
SIZES = ("M", "N", "K", "a_m", "a_k", "b_k", "b_n", "c_m")


def product(
    gpu, arch, kind, out_kind, shape, tile, *, unit="kn", accumulate=tl.float32, precision="tf32", values=None,
    scale=1.0, **options,
):  # fmt: skip
    """The kernel's result and the exact one, both float64."""
    m, n, k = shape
    rng = np.random.default_rng(m + n + k)
    make = values or (lambda shape: grid(rng, shape))
    x, y = encode(make((m, k)), kind), encode(make((k, n)), kind)
    a_strides = (k, 1) if unit[0] == "k" else (1, m)
    b_strides = (n, 1) if unit[1] == "n" else (1, k)
    sizes = (m, n, k, *a_strides, *b_strides, n)
    compiled = compile_kernel(
        matmul.matmul, arch,
        {"a": "*" + kind, "b": "*" + kind, "c": "*" + out_kind, "scale": "fp32", **dict.fromkeys(SIZES, "i32")},
        multiples_of_16=tuple(name for name, size in zip(SIZES, sizes, strict=True) if size % 16 == 0), options=options,
        BM=tile[0], BN=tile[1], BK=tile[2], ACC=accumulate, PRECISION=precision, UNIT=unit,
    )  # fmt: skip
    a = gpu.array(x if unit[0] == "k" else np.ascontiguousarray(x.T))
    b = gpu.array(y if unit[1] == "n" else np.ascontiguousarray(y.T))
    c = gpu.empty((m, n), raw_dtype(out_kind))
    blocks = (-(-m // tile[0]), -(-n // tile[1]))
    compiled.launch(gpu, blocks, a, b, c, scale, *sizes)
    return decode(c, out_kind), decode(x, kind) @ decode(y, kind)


# Triton has e4m3 from sm_90 on only.
TYPES = [
    (arch, kind, accumulate, precision)
    for arch in (80, 90)
    for kind, accumulate, precision in [
        ("fp16", "float32", "tf32"),
        ("fp16", "float16", "tf32"),
        ("bf16", "float32", "tf32"),
        ("fp32", "float32", "tf32"),
        ("fp32", "float32", "ieee"),
        ("fp32", "float32", "tf32x3"),
        ("fp8e5", "float32", "tf32"),
        ("fp8e4nv", "float32", "tf32"),
    ]
    if arch >= 90 or kind != "fp8e4nv"
]


@pytest.mark.parametrize("unit", ["kk", "kn", "mk", "mn"])
@pytest.mark.parametrize(("arch", "kind", "accumulate", "precision"), TYPES)
def test_types_and_layouts(make_gpu, arch, unit, kind, accumulate, precision):
    rng = np.random.default_rng(1)
    # Sums in fp16 are exact to 1/16 up to 128: of the 128 products of up to 4, one in 16 is not 0.
    density = 0.25 if accumulate == "float16" else 1.0

    def values(shape):
        return grid(rng, shape, kind) * (rng.random(shape) < density)

    actual, expected = product(
        make_gpu(arch), arch, kind, "fp32", (64, 128, 128), (64, 64, 64 if kind != "fp32" else 32), unit=unit,
        accumulate=getattr(tl, accumulate), precision=precision, values=values,
    )  # fmt: skip
    np.testing.assert_array_equal(actual, expected)


@ARCHES
@SEEDS
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("tile", "warps", "stages"),
    [((128, 64, 32), 4, 1), ((64, 128, 64), 4, 2), ((128, 128, 32), 8, 3), ((32, 32, 32), 2, 4), ((16, 64, 64), 1, 3)],
)
def test_tiles_and_stages(make_gpu, arch, seed, kind, tile, warps, stages):
    # Ragged in all dimensions.
    actual, expected = product(
        make_gpu(arch, seed), arch, kind, kind, (200, 240, 176), tile, unit="kk", num_warps=warps, num_stages=stages
    )
    np.testing.assert_array_equal(actual, decode(encode(expected, kind), kind))


@ARCHES
def test_unaligned_strides(make_gpu, arch):
    actual, expected = product(
        make_gpu(arch), arch, "bf16", "fp32", (61, 67, 45), (64, 64, 32), unit="kn", num_stages=2
    )
    np.testing.assert_array_equal(actual, expected)


@ARCHES
@pytest.mark.parametrize("order", ["exact", "truncate"])
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32", "fp8e5"])
def test_orders_of_accumulation(make_gpu, arch, order, kind):
    """Exact sums do not depend on how tensor cores add up."""
    gpu = make_gpu(arch, accumulate=order)
    actual, expected = product(gpu, arch, kind, "fp32", (64, 64, 128), (64, 64, 32), unit="kk")
    np.testing.assert_array_equal(actual, expected)


@ARCHES
def test_scale_and_rounding(make_gpu, arch):
    # Any inputs, not only those with exact sums: fp32 accumulation of 256 terms, then one rounding to bf16.
    rng = np.random.default_rng(2)
    actual, expected = product(
        make_gpu(arch), arch, "bf16", "bf16", (64, 64, 256), (64, 64, 32), values=rng.standard_normal, scale=0.125
    )
    expected *= 0.125
    np.testing.assert_allclose(actual, expected, rtol=HALF_ULP["bf16"] + 2.0**-16, atol=1e-4)


@ARCHES
def test_fp64(make_gpu, arch):
    actual, expected = product(
        make_gpu(arch), arch, "fp64", "fp64", (32, 32, 64), (32, 32, 16), unit="kn", accumulate=tl.float64,
        precision="ieee",
    )  # fmt: skip
    np.testing.assert_array_equal(actual, expected)


@ARCHES
@pytest.mark.parametrize("warps", [4, 8])
def test_int8(make_gpu, arch, warps):
    m, n, k = 96, 80, 192
    rng = np.random.default_rng(3)
    x, y = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((m, k), (n, k)))
    compiled = compile_kernel(
        matmul.matmul_int8, arch, {"a": "*i8", "b": "*i8", "c": "*i32", "M": "i32", "N": "i32", "K": "i32"},
        multiples_of_16=("N", "K"), options={"num_warps": warps}, BM=64, BN=64, BK=64,
    )  # fmt: skip
    gpu = make_gpu(arch)
    out = gpu.empty((m, n), np.int32)
    compiled.launch(gpu, (2, 2), gpu.array(x), gpu.array(y), out, m, n, k)
    np.testing.assert_array_equal(out, x.astype(np.int32) @ y.T.astype(np.int32))


@ARCHES
@SEEDS
def test_split_k(make_gpu, arch, seed):
    m, n, k, splits = 64, 128, 256, 4
    rng = np.random.default_rng(4)
    x, y, start = grid(rng, (m, k)), grid(rng, (k, n)), grid(rng, (m, n))
    compiled = compile_kernel(
        matmul.matmul_split_k, arch, {"a": "*bf16", "b": "*bf16", "c": "*fp32", "M": "i32", "N": "i32", "K": "i32"},
        multiples_of_16=("N", "K"), BM=64, BN=64, BK=32, SPLITS=splits,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.array(start.astype(np.float32))
    compiled.launch(gpu, (1, 2, splits), gpu.array(encode(x, "bf16")), gpu.array(encode(y, "bf16")), out, m, n, k)
    np.testing.assert_array_equal(out, start + x @ y)


@ARCHES
@SEEDS
def test_persistent(make_gpu, arch, seed):
    m, n, k = 200, 168, 96
    rng = np.random.default_rng(5)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    compiled = compile_kernel(
        matmul.matmul_persistent, arch, {"a": "*bf16", "b": "*bf16", "c": "*bf16", "M": "i32", "N": "i32", "K": "i32"},
        multiples_of_16=("N", "K"), BM=64, BN=64, BK=32, GROUP=2,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.empty((m, n), np.uint16)
    compiled.launch(gpu, 5, gpu.array(encode(x, "bf16")), gpu.array(encode(y, "bf16")), out, m, n, k)
    np.testing.assert_array_equal(out, encode(x @ y.T, "bf16"))


@ARCHES
def test_batched(make_gpu, arch):
    rng = np.random.default_rng(6)
    x, y = grid(rng, (4, 32, 64)), grid(rng, (4, 64, 16))
    compiled = compile_kernel(
        matmul.matmul_batched, arch, {"a": "*fp16", "b": "*fp16", "c": "*fp32"}, B=4, M=32, N=16, K=64
    )
    gpu = make_gpu(arch)
    out = gpu.empty((4, 32, 16))
    compiled.launch(gpu, 1, gpu.array(encode(x, "fp16")), gpu.array(encode(y, "fp16")), out)
    np.testing.assert_array_equal(out, x @ y)


@ARCHES
def test_chain(make_gpu, arch):
    rng = np.random.default_rng(7)
    # Small integers: the middle product is exact in bf16.
    x, y, z = (rng.integers(-1, 2, shape).astype(np.float64) for shape in ((64, 32), (32, 64), (64, 32)))
    compiled = compile_kernel(
        matmul.matmul_chain, arch, {"a": "*bf16", "b": "*bf16", "d": "*bf16", "out": "*fp32"}, M=64, N=64, K=32, L=32
    )
    gpu = make_gpu(arch)
    out = gpu.empty((64, 32))
    compiled.launch(gpu, 1, *(gpu.array(encode(part, "bf16")) for part in (x, y, z)), out)
    np.testing.assert_array_equal(out, x @ y @ z)


@ARCHES
def test_int8_weights(make_gpu, arch):
    rng = np.random.default_rng(8)
    m, n, k = 64, 32, 128
    x, y = grid(rng, (m, k)), rng.integers(-128, 128, (n, k), dtype=np.int8)
    compiled = compile_kernel(matmul.matmul_mixed, arch, {"a": "*bf16", "b": "*i8", "c": "*fp32"}, M=m, N=n, K=k, BK=64)
    gpu = make_gpu(arch)
    out = gpu.empty((m, n))
    compiled.launch(gpu, 1, gpu.array(encode(x, "bf16")), gpu.array(y), out)
    np.testing.assert_array_equal(out, x @ y.T.astype(np.float64))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.parametrize(
    ("arch", "formats"),
    [
        (80, ("e5m2", "e5m2")), (80, ("e2m1", "e2m1")),
        (90, ("e5m2", "e5m2")), (90, ("e2m1", "e2m1")), (90, ("e4m3", "e5m2")), (90, ("e2m1", "e4m3")),
    ],
)  # fmt: skip
def test_block_scaled(make_gpu, arch, formats):
    rng = np.random.default_rng(9)
    m, n, k = 64, 64, 128
    kinds = {"e4m3": "fp8e4nv", "e5m2": "fp8e5", "e2m1": "u8"}
    gpu = make_gpu(arch)
    values, arrays = [], []
    for rows, form in ((m, formats[0]), (n, formats[1])):
        if form == "e2m1":
            raw = rng.integers(0, 16, (rows, k))
            value = E2M1[raw]
            packed = (raw[:, ::2] | raw[:, 1::2] << 4).astype(np.uint8)  # the first of a pair in the low bits
        else:
            value = grid(rng, (rows, k))
            packed = encode(value, kinds[form])
        scale = rng.integers(125, 130, (rows, k // 32)).astype(np.uint8)  # 2^-2 to 2^2
        values.append(value * np.repeat(np.exp2(scale.astype(np.float64) - 127), 32, 1))
        arrays += [gpu.array(packed), gpu.array(scale)]
    compiled = compile_kernel(
        matmul.matmul_scaled, arch,
        {"a": "*" + kinds[formats[0]], "a_scale": "*u8", "b": "*" + kinds[formats[1]], "b_scale": "*u8", "c": "*fp32"},
        M=m, N=n, K=k, FA=formats[0], FB=formats[1],
    )  # fmt: skip
    out = gpu.empty((m, n))
    compiled.launch(gpu, 1, *arrays, out)
    np.testing.assert_array_equal(out, values[0] @ values[1].T)


@SEEDS
def test_two_block_clusters(make_gpu, seed):
    actual, expected = product(
        make_gpu(90, seed), 90, "bf16", "fp32", (256, 256, 128), (128, 128, 64), unit="kk", num_ctas=2, num_stages=3
    )
    np.testing.assert_array_equal(actual, expected)
