"""Triton's element-wise kernels against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")

from emulator.tests.oracles.formats import HALF_ULP, assert_within_ulp, decode, encode, raw_dtype
from emulator.tests.oracles.triton_compile import compile_kernel
from emulator.tests.oracles.triton_kernels import elementwise

ARCHES = pytest.mark.parametrize("arch", [80, 90])


def run(gpu, kernel, arch, inputs, outputs, n, *, block=256, scalars=(), options=None, **settings):
    """Launch over n elements; `inputs` and `outputs` are (type, array) and (type, shape); returns the outputs."""
    names = [name for name in kernel.arg_names if name not in {"n", "seed", "BLOCK", *settings}]
    kinds = [kind for kind, _ in (*inputs, *outputs)]
    parameters = {name: "*" + kind for name, kind in zip(names, kinds, strict=True)} | {"n": "i32", "seed": "i32"}
    compiled = compile_kernel(kernel, arch, parameters, options=options, BLOCK=block, **settings)
    arrays = [gpu.array(array) for _, array in inputs]
    results = [gpu.empty(shape, raw_dtype(kind)) for kind, shape in outputs]
    compiled.launch(gpu, -(-n // block), *arrays, *results, n, *scalars)
    return results


@ARCHES
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("n", "block", "warps"), [(1000, 1024, 4), (5000, 512, 2), (4096, 2048, 8)])
def test_add(make_gpu, arch, kind, n, block, warps):
    rng = np.random.default_rng(n)
    x, y = (encode(rng.standard_normal(n) * 3, kind) for _ in range(2))
    (out,) = run(
        make_gpu(arch),
        elementwise.add,
        arch,
        [(kind, x), (kind, y)],
        [(kind, (n,))],
        n,
        block=block,
        options={"num_warps": warps},
    )
    # The sum of two halves is exact in fp32, so rounding once is right.
    assert np.array_equal(out, encode((decode(x, kind) + decode(y, kind)).astype(np.float32), kind))


@ARCHES
def test_unaligned_pointers(make_gpu, arch):
    gpu = make_gpu(arch)
    x, y = (np.arange(1001, dtype=np.float32) * factor for factor in (1, 2))
    compiled = compile_kernel(
        elementwise.add, arch, {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}, aligned=False, BLOCK=256
    )
    out = gpu.zeros(1001)
    compiled.launch(gpu, 4, gpu.array(x)[1:], gpu.array(y)[1:], out[1:], 1000)
    assert np.array_equal(out[1:], x[1:] + y[1:])
    assert out[0] == 0


@ARCHES
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_activations(make_gpu, arch, kind):
    n = 3000
    rng = np.random.default_rng(1)
    x, gate = (encode(rng.standard_normal(n) * 4, kind) for _ in range(2))
    v, g = decode(x, kind), decode(gate, kind)
    gpu = make_gpu(arch)
    # fp32 arithmetic with ex2.approx (2 ulp) and div.full (2 ulp), where |x| <= 20 scales the exponent's rounding
    # error by 20; then one rounding to the format.
    tolerance = {"rtol": 2.0**-18 + HALF_ULP[kind], "atol": 2.0**-22}

    (out,) = run(gpu, elementwise.swiglu, arch, [(kind, x), (kind, gate)], [(kind, (n,))], n)
    np.testing.assert_allclose(decode(out, kind), v * g / (1 + np.exp(-g)), **tolerance)

    exact, smooth = run(gpu, elementwise.gelu_pair, arch, [(kind, x)], [(kind, (n,))] * 2, n)
    erf = np.vectorize(math.erf)(v / math.sqrt(2))
    # 1 + erf(x) cancels for negative x: 2 ulp of erf near -1 are 2^-23 of x.
    tolerance["atol"] = 2.0**-20
    np.testing.assert_allclose(decode(exact, kind), 0.5 * v * (1 + erf), **tolerance)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
    np.testing.assert_allclose(decode(smooth, kind), 0.5 * v * (1 + tanh), **tolerance)


@ARCHES
def test_unary_functions(make_gpu, arch):
    n = 2000
    x = np.exp(np.random.default_rng(2).uniform(-3, 2.5, n)).astype(np.float32)
    (out,) = run(make_gpu(arch), elementwise.unary_functions, arch, [("fp32", x)], [("fp32", (12, n))], n)
    v = x.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = [
            np.exp(v), np.exp2(v), np.log(v), np.log2(v), np.sin(v), np.cos(v),
            np.sqrt(v), np.sqrt(v), 1 / np.sqrt(v), np.floor(v), np.ceil(v), 1 / v,
        ]  # fmt: skip
    # The PTX manual's bounds. exp is ex2.approx (2 ulp) of x log2(e), whose rounding x <= 12.2 multiplies by 9; log is
    # lg2.approx, of absolute error 2^-22 near 1, times ln 2; sin and cos are libdevice's, at most 2 ulp.
    ulp = [12, 2, 3, 2, 2, 2, 1, 0, 2, 0, 0, 2]
    absolute = [0, 0, 2.0**-21, 2.0**-21, 0, 0, 0, 0, 0, 0, 0, 0]
    for actual, want, bound, floor in zip(out, expected, ulp, absolute, strict=True):
        assert_within_ulp(np.array(actual), want, bound, absolute=floor)


@ARCHES
def test_libdevice_functions(make_gpu, arch):
    n = 1500
    rng = np.random.default_rng(3)
    x = np.exp(rng.uniform(-4, 3, n)).astype(np.float32)
    y = rng.uniform(-5, 5, n).astype(np.float32)
    (out,) = run(
        make_gpu(arch), elementwise.libdevice_functions, arch, [("fp32", x), ("fp32", y)], [("fp32", (12, n))], n
    )
    v, w = x.astype(np.float64), y.astype(np.float64)
    expected = [
        v**w, np.arctan2(v, w), np.fmod(v, w), np.hypot(v, w), np.log1p(v), np.expm1(v), np.vectorize(math.gamma)(v),
        np.cbrt(v), np.rint(v), np.trunc(v + 0.5), np.vectorize(math.erfc)(v), np.sin(np.pi * np.fmod(v, 2)),
    ]  # fmt: skip
    # The bounds of the CUDA guide's table of mathematical functions.
    ulp = [4, 3, 0, 3, 1, 1, 5, 1, 0, 0, 4, 1]
    for actual, want, bound in zip(out, expected, ulp, strict=True):
        # Triton's libdevice flushes subnormal numbers.
        assert_within_ulp(np.array(actual), want, bound, absolute=2.0**-126)


@ARCHES
def test_binary_operators(make_gpu, arch):
    n = 1024
    rng = np.random.default_rng(4)
    x, y = (rng.integers(-8, 9, n).astype(np.float32) / 4 for _ in range(2))
    x[::97] = np.nan
    y[5::83] = np.inf
    (out,) = run(make_gpu(arch), elementwise.binary_operators, arch, [("fp32", x), ("fp32", y)], [("fp32", (10, n))], n)
    with np.errstate(all="ignore"):
        quotient = x / y
        expected = [
            x - y, x * y, quotient, quotient,
            np.fmin(x, y), np.maximum(x, y),
            np.where((x < y) | (x == 1), x, -np.abs(y)),
            # Exact but for infinities.
            x * y + x,
            np.fmin(np.fmax(x, np.float32(-0.5)), np.float32(0.5)),
            ((x >= y) ^ np.isnan(x)).astype(np.float32),
        ]  # fmt: skip
    # Which bound a NaN is clamped to is left open.
    out[8][np.isnan(x)] = expected[8][np.isnan(x)]
    for row, (actual, want) in enumerate(zip(out, expected, strict=True)):
        if row == 2:
            assert_within_ulp(np.array(actual), want.astype(np.float64), 2)  # div.full
        else:
            np.testing.assert_array_equal(actual, want, err_msg=f"row {row}")


@ARCHES
@pytest.mark.parametrize("kind", ["i8", "i16", "i32", "i64"])
def test_integer_operators(make_gpu, arch, kind):
    n = 1000
    rng = np.random.default_rng(5)
    dtype = raw_dtype(kind)
    info = np.iinfo(dtype)
    x, y = (rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True) for _ in range(2))
    y[::3] = rng.integers(-9, 9, y[::3].size)
    y[y == 0] = 7
    x[x == info.min] += 1  # min / -1 overflows
    x[4::50] = y[4::50]
    (out,) = run(make_gpu(arch), elementwise.integer_operators, arch, [(kind, x), (kind, y)], [(kind, (16, n))], n)
    shift = y & dtype(7)
    # Like C, Triton rounds the quotient towards zero.
    remainder = np.fmod(x, y)
    with np.errstate(over="ignore"):
        expected = [
            x + y, x - y, x * y, (x - remainder) // y, remainder, x & y, x | y, x ^ y, x << shift, x >> shift,
            np.minimum(x, y), np.maximum(x, y), ~x, np.abs(x), np.where(x < y, x, y * dtype(3)),
            (x == y).astype(dtype) - (x > y).astype(dtype),
        ]  # fmt: skip
    for row, (actual, want) in enumerate(zip(out, expected, strict=True)):
        np.testing.assert_array_equal(actual, want, err_msg=f"row {row}")


@ARCHES
def test_bit_functions(make_gpu, arch):
    n = 700
    rng = np.random.default_rng(6)
    x, y = (rng.integers(-(2**31), 2**31, n, dtype=np.int64) for _ in range(2))
    x[:40] = np.concatenate([[0, -1], 2 ** np.arange(31), -(2 ** np.arange(7))])
    (out,) = run(
        make_gpu(arch), elementwise.bit_functions, arch,
        [("i32", x.astype(np.int32)), ("i32", y.astype(np.int32))], [("i32", (7, n))], n,
    )  # fmt: skip
    ux, uy = x & 0xFFFFFFFF, y & 0xFFFFFFFF
    bits = [f"{value:032b}" for value in ux.tolist()]
    both = ux | (uy << 32)
    permuted = sum(((both.view(np.uint64) >> np.uint64(8 * source)) & np.uint64(255)) << np.uint64(8 * byte)
                   for byte, source in enumerate((0, 4, 1, 6)))  # fmt: skip
    expected = [
        [len(b) - len(b.lstrip("0")) for b in bits],
        [b.count("1") for b in bits],
        [int(b[::-1], 2) for b in bits],
        [b[::-1].find("1") + 1 for b in bits],
        (ux.astype(object) * uy.astype(object)) >> 32,
        (x.astype(object) * y.astype(object)) >> 32,
        permuted.astype(np.int64),
    ]
    for row, (actual, want) in enumerate(zip(out, expected, strict=True)):
        want = np.array([int(value) & 0xFFFFFFFF for value in want], np.uint32)
        np.testing.assert_array_equal(actual.view(np.uint32), want, err_msg=f"row {row}")


FLOATS = ["fp64", "fp32", "fp16", "bf16", "fp8e4nv", "fp8e5"]
INTEGERS = ["i8", "i16", "i32", "i64"]
# Those that Triton compiles: fp8 only to and from floats of up to 32 bits, e4m3 only from sm_90 on.
CASTS = [
    (arch, a, b)
    for arch in (80, 90)
    for a in FLOATS + INTEGERS
    for b in FLOATS + INTEGERS
    if a != b
    and not (a.startswith("fp8") and (b not in FLOATS or b == "fp64" or b.startswith("fp8")))
    and not (b.startswith("fp8") and (a not in FLOATS or a == "fp64"))
    and not (arch < 90 and "fp8e4nv" in (a, b))
]


@pytest.mark.parametrize(("arch", "source", "target"), CASTS)
def test_cast(make_gpu, arch, source, target):
    rng = np.random.default_rng(7)
    if source.startswith("fp8"):
        x = np.arange(256, dtype=np.uint8)  # every pattern
        if (source, target) == ("fp8e5", "bf16"):
            # Triton moves the bits and multiplies by 2¹¹²: infinities and NaNs come out as 2¹⁶ and more.
            x = x[(x & 0x7C) != 0x7C]
    elif source in FLOATS:
        bound = 2.0 ** {"i8": 7, "i16": 15, "i32": 31, "i64": 60}.get(target, 8) - 1
        values = rng.standard_normal(1000) * np.exp2(rng.uniform(-10, 8, 1000))
        x = encode(np.clip(values, -bound, bound), source)
    else:
        info = np.iinfo(raw_dtype(source))
        x = rng.integers(info.min, info.max, 1000, dtype=raw_dtype(source), endpoint=True) >> rng.integers(
            0, 8 * info.dtype.itemsize, 1000
        ).astype(raw_dtype(source))
    n = x.size
    # Triton's own code for e5m2 works on four bytes of which some are undefined, and keeps the others.
    gpu = make_gpu(arch, uninitialised="fp8e5" not in (source, target))
    (out,) = run(gpu, elementwise.cast, arch, [(source, x)], [(target, (n,))], n)
    v = decode(x, source)
    if target in INTEGERS:
        np.testing.assert_array_equal(out, (np.trunc(v) if source in FLOATS else v).astype(raw_dtype(target)))
        return
    if target in ("fp64", "fp32"):
        with np.errstate(invalid="ignore"):
            expected = v.astype(raw_dtype(target))
        np.testing.assert_array_equal(out, expected)
        return
    actual = decode(out, target)
    exact = _round_once(v, target)
    finite = ~np.isnan(exact)
    assert np.array_equal(np.isnan(actual), ~finite)
    if np.array_equal(actual[finite], exact[finite]):
        return
    # Where no instruction converts at once Triton goes through fp32, which may round twice; and below sm_90 its
    # conversion to e5m2 is its own integer code, which cuts fp32's tail.
    assert source in ("fp64", "i32", "i64") or target == "fp8e5", "one rounding was possible"
    np.testing.assert_allclose(actual[finite], exact[finite], rtol=2 * HALF_ULP[target], atol=2.0**-16)


def _round_once(values, target):
    """Round float64 or integers to a narrow format, ties to even, exactly once."""
    # Round to odd at fp32 first: then the second rounding sees whether anything was cut off.
    v = values.astype(np.longdouble)
    near = v.astype(np.float32)
    with np.errstate(invalid="ignore"):
        inexact = (near.astype(np.longdouble) != v) & np.isfinite(near)
        beyond = np.abs(near.astype(np.longdouble)) > np.abs(v)
    bits = near.view(np.uint32)
    down = np.where(inexact & beyond, bits - np.uint32(1), bits)
    odd = np.where(inexact, down | np.uint32(1), down).astype(np.uint32).view(np.float32)
    return decode(encode(odd, target), target)


def _philox(counter, key, rounds=10):
    """Philox 4x32 of Salmon et al., 2011: counter is (n, 4), key a pair."""
    c = [np.asarray(word, np.uint64) for word in counter]
    k0, k1 = key
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(rounds):
        high0, low0 = (c[0] * np.uint64(0xD2511F53)) >> np.uint64(32), (c[0] * np.uint64(0xD2511F53)) & mask
        high1, low1 = (c[2] * np.uint64(0xCD9E8D57)) >> np.uint64(32), (c[2] * np.uint64(0xCD9E8D57)) & mask
        c = [high1 ^ c[1] ^ np.uint64(k0), low1, high0 ^ c[3] ^ np.uint64(k1), low0]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


@ARCHES
def test_random_bits(make_gpu, arch):
    n, seed = 1200, 1234567
    bits, uniform = run(
        make_gpu(arch), elementwise.random_bits, arch, [], [("i32", (4, n)), ("fp32", (n,))], n, scalars=(seed,)
    )
    zero = np.zeros(n, np.uint64)
    expected = _philox([np.arange(n, dtype=np.uint64), zero, zero, zero], (seed, 0))
    for actual, want in zip(bits, expected, strict=True):
        np.testing.assert_array_equal(actual.view(np.uint32), want.astype(np.uint32))
    # Triton maps the first word, as a signed number made positive by ~, to [0, 1).
    word = expected[0].astype(np.uint32).view(np.int32)
    word = np.where(word < 0, ~word, word).astype(np.float32)
    np.testing.assert_array_equal(uniform, word * np.float32(4.6566127342e-10))


@ARCHES
@pytest.mark.parametrize("kind", ["fp32", "bf16", "i8"])
def test_transpose(make_gpu, arch, kind):
    gpu = make_gpu(arch)
    rows, columns = 75, 130
    x = np.random.default_rng(8).integers(-100, 100, (rows, columns)).astype(raw_dtype(kind))
    compiled = compile_kernel(
        elementwise.transpose, arch, {"x": "*" + kind, "out": "*" + kind, "rows": "i32", "columns": "i32"},
        ROWS=32, COLUMNS=64,
    )  # fmt: skip
    out = gpu.empty((columns, rows), raw_dtype(kind))
    compiled.launch(gpu, (3, 3), gpu.array(x), out, rows, columns)
    assert np.array_equal(out, x.T)


@ARCHES
@pytest.mark.parametrize("warps", [1, 4])
def test_shuffle_elements(make_gpu, arch, warps):
    gpu = make_gpu(arch)
    rows, columns = 32, 64
    x = np.random.default_rng(9).integers(-1000, 1000, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        elementwise.shuffle_elements, arch, {"x": "*fp32", "out": "*fp32"}, options={"num_warps": warps},
        ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    out = gpu.empty(x.size * 7 // 2)
    compiled.launch(gpu, 1, gpu.array(x), out)
    even, odd = x[:, ::2], x[:, 1::2]
    swapped = np.stack([odd, even], -1)
    expected = np.concatenate([part.ravel() for part in (x.T, even - odd, swapped, x.ravel()[::-1])])
    assert np.array_equal(out, expected)


@ARCHES
@pytest.mark.parametrize("axis", [0, 1])
def test_gather(make_gpu, arch, axis):
    gpu = make_gpu(arch)
    rng = np.random.default_rng(10)
    x = rng.integers(-1000, 1000, (32, 64)).astype(np.float32)
    index = rng.integers(0, x.shape[axis], x.shape).astype(np.int32)
    compiled = compile_kernel(
        elementwise.gather_columns,
        arch,
        {"x": "*fp32", "index": "*i32", "out": "*fp32"},
        ROWS=32,
        COLUMNS=64,
        AXIS=axis,
    )
    out = gpu.empty(x.shape)
    compiled.launch(gpu, 1, gpu.array(x), gpu.array(index), out)
    assert np.array_equal(out, np.take_along_axis(x, index, axis))
