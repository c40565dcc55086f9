"""CUDA's math library against NumPy in a wider type, within the bounds of the CUDA guide's tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emulator.tests.oracles.formats import assert_within_ulp

ARCHES = pytest.mark.parametrize("arch", [80, 90])


@pytest.fixture(params=["release", "debug"])
def build(request, load_cuda):
    """load_cuda for optimised and for unoptimised code."""

    def load(name, arch):
        return load_cuda(name, arch, debug=request.param == "debug")

    return load


def run(build, arch, kernel, rows, *inputs):
    gpu, module = build("math_functions", arch)
    n = inputs[0].size
    out = gpu.empty((rows, n), inputs[0].dtype)
    module[kernel](-(-n // 128), 128, *map(gpu.array, inputs), out, n)
    return np.array(out)


def check(out, expected, bounds, **options):
    for row, (actual, want, ulp) in enumerate(zip(out, expected, bounds, strict=True)):
        try:
            assert_within_ulp(actual, np.asarray(want), ulp, **options)
        except AssertionError as error:
            raise AssertionError(f"function {row}: {error}") from None


def each(function, x):
    return np.array([function(float(v)) for v in x])


@ARCHES
def test_fp32_one_argument(build, arch):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-8, 8, 1200), rng.standard_normal(300) * 1e-3]).astype(np.float32)
    out = run(build, arch, "fp32_one", 24, x)
    v = x.astype(np.float64)
    gamma = each(math.gamma, v)
    expected = [
        np.sin(v), np.cos(v), np.tan(v), np.exp(v), np.exp2(v), 10.0**v, np.expm1(v), np.sinh(v), np.cosh(v),
        np.tanh(v), np.arcsinh(v), np.arctan(v), each(math.erf, v), each(math.erfc, v), np.cbrt(v),
        each(lambda a: 0.5 * math.erfc(-a / math.sqrt(2)), v), gamma, each(math.lgamma, v), np.rint(v),
        np.trunc(v + np.copysign(0.5, v)), np.trunc(v), None, np.sin(np.pi * np.fmod(v, 2)), np.i0(v),
    ]  # fmt: skip
    bounds = [2, 2, 4, 2, 2, 2, 1, 3, 2, 2, 3, 2, 2, 4, 1, 5, 5, None, 0, 0, 0, None, 1, 6]
    # No table holds for j0f, and lgammaf's leaves out the zeros between -10 and -2.
    kept = [row for row, bound in enumerate(bounds) if bound is not None]
    check(out[kept], [expected[row] for row in kept], [bounds[row] for row in kept])
    right = v > -2
    check(out[17:18, right], [expected[17][right]], [6])
    # Bessel's integral, by the trapezium rule on a period: exact to rounding.
    angle = np.linspace(0, np.pi, 65)
    weight = np.where((angle == 0) | (angle == np.pi), 0.5, 1.0) / 64
    j0 = (np.cos(v[:, None] * np.sin(angle)) * weight).sum(1)
    check(out[21:22], [j0], [9], absolute=2.2e-6)


@ARCHES
def test_fp32_large_arguments(build, arch):
    """Reduction by many digits of pi."""
    x = (np.exp2(np.random.default_rng(2).uniform(10, 100, 500))).astype(np.float32)
    out = run(build, arch, "fp32_one", 24, x)
    v = x.astype(np.float64)  # NumPy's reduction is exact as well
    check(out[:3], [np.sin(v), np.cos(v), np.tan(v)], [2, 2, 4])


@ARCHES
def test_fp32_positive_arguments(build, arch):
    x = np.exp2(np.random.default_rng(3).uniform(-30, 30, 1500)).astype(np.float32)
    out = run(build, arch, "fp32_positive", 12, x)
    v = x.astype(np.float64)
    one = np.float32(1)
    ratio = (x / (x + one)).astype(np.float64)
    expected = [
        np.log(v), np.log2(v), np.log10(v), np.log1p(v), np.sqrt(v), 1 / np.sqrt(v), 1 / v,
        np.arccosh((x + one).astype(np.float64)), 1 / np.cbrt(v), np.arcsin(ratio), np.arccos(ratio),
        np.floor(np.log2(v)),
    ]  # fmt: skip
    check(out, expected, [1, 1, 2, 1, 0, 2, 0, 4, 1, 2, 2, 0])


@ARCHES
def test_fp32_two_arguments(build, arch):
    rng = np.random.default_rng(4)
    n = 1500
    x = (rng.standard_normal(n) * np.exp2(rng.integers(-8, 9, n))).astype(np.float32)
    y = (rng.standard_normal(n) * 8).astype(np.float32)
    out = run(build, arch, "fp32_two", 12, x, y)
    v, w = x.astype(np.float64), y.astype(np.float64)
    fraction, exponent = np.frexp(x)
    rest, whole = np.modf(x)
    with np.errstate(all="ignore"):
        expected = [
            np.abs(v) ** w, np.arctan2(v, w), np.fmod(v, w), np.vectorize(math.remainder)(v, w),
            np.hypot(v, w), v / w, np.maximum(v - w, 0), np.nextafter(x, y).astype(np.float64), np.copysign(v, w),
            np.ldexp(v, y.astype(int)), (fraction + exponent.astype(np.float32)).astype(np.float64),
            (rest * np.float32(2) + whole).astype(np.float64),
        ]  # fmt: skip
    # powf's exact value may be below fp32's range.
    check(out, expected, [4, 3, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0.5])


def directed(exact, approximate, mode):
    """`exact` (a comparison with float32 as a function of it) rounded in a mode, from a near approximation."""
    near = approximate.astype(np.float32)
    for _ in range(2):  # the approximation may have been rounded up to the wrong neighbour
        error = exact(near)  # sign of near - exact value
        if mode == "u":
            near = np.where(error < 0, np.nextafter(near, np.float32(np.inf)), near)
        elif mode == "d":
            near = np.where(error > 0, np.nextafter(near, np.float32(-np.inf)), near)
        else:
            near = np.where(error * np.sign(near) > 0, np.nextafter(near, np.float32(0)), near)
    return near


@ARCHES
def test_fp32_rounding_modes(build, arch):
    rng = np.random.default_rng(5)
    n = 1200
    x = (rng.standard_normal(n) * np.exp2(rng.integers(-3, 4, n))).astype(np.float32)
    y = (rng.standard_normal(n) * np.exp2(rng.integers(-3, 4, n))).astype(np.float32)
    out = run(build, arch, "fp32_rounding", 26, x, y)
    v, w = x.astype(np.longdouble), y.astype(np.longdouble)
    root = np.abs(v)
    # Sums, products and fma of such numbers are exact in 64 bits of significand; quotients and roots compare by
    # multiplying back, which is exact too.
    cases = [
        (0, v + w, lambda near: near - (v + w)),
        (4, v * w, lambda near: near - v * w),
        (8, v / w, lambda near: (near * w - v) * np.sign(w)),
        (12, np.sqrt(root), lambda near: near * near - root),
        (16, 1 / v, lambda near: (near * v - 1) * np.sign(v)),
        (20, v * w - v, lambda near: near - (v * w - v)),
    ]
    for first, value, sign in cases:
        np.testing.assert_array_equal(out[first], value.astype(np.float32), err_msg=f"row {first}")
        for row, mode in ((1, "z"), (2, "u"), (3, "d")):

            def error(near, sign=sign):
                return sign(near.astype(np.longdouble))

            expected = directed(error, value, mode)
            np.testing.assert_array_equal(out[first + row], expected, err_msg=f"row {first + row}")
    np.testing.assert_array_equal(out[24], (1 / np.sqrt(root)).astype(np.float32))
    np.testing.assert_array_equal(out[25], np.clip(x, 0, 1))


@ARCHES
def test_fp32_approximations(build, arch):
    x = np.random.default_rng(6).uniform(0.05, 3, 1000).astype(np.float32)
    out = run(build, arch, "fp32_fast", 10, x)
    v = x.astype(np.float64)
    expected = [
        np.sin(v), np.cos(v), np.exp(v), 10.0**v, np.log(v), np.log2(v), 1 / v, v**1.5, np.tan(v), np.tanh(v),
    ]  # fmt: skip
    # The guide's bounds for these ranges: absolute ones for the trigonometric functions and near log's zero; tan is a
    # quotient of the two; tanh.approx has a relative error of 2^-11.
    relative = [0, 0, 2.0**-21, 2.0**-20, 2.0**-21, 2.0**-21, 2.0**-22, 2.0**-19, 2.0**-10, 2.0**-10.9]
    absolute = [2.0**-20.5, 2.0**-20.5, 0, 0, 2.0**-21, 2.0**-21, 0, 0, 2.0**-20, 0]
    for row, (actual, want) in enumerate(zip(out, expected, strict=True)):
        # tan's error grows with its square.
        limit = absolute[row] * (1 + want**2) if row == 8 else absolute[row]
        error = np.abs(actual - want)
        assert (error <= limit + relative[row] * np.abs(want)).all(), f"function {row}: {error.max()}"


@ARCHES
def test_fp64(build, arch):
    x = np.random.default_rng(7).uniform(0.01, 20, 600)
    out = run(build, arch, "fp64_one", 14, x)
    v = x.astype(np.longdouble)
    erf = each(math.erf, x).astype(np.longdouble)  # itself off by up to 1 ulp
    expected = [
        np.sin(v), np.cos(v), np.exp(v), np.log(v), np.sqrt(v), 1 / v, 1 / np.sqrt(v), np.tanh(v), erf, np.cbrt(v),
        v ** np.longdouble(1.25), np.arctan(v), np.log1p(v), np.expm1(v),
    ]  # fmt: skip
    check(out, expected, [2, 2, 1, 1, 0, 0, 1, 2, 3, 1, 2, 2, 1, 1])


@ARCHES
def test_integers(build, arch):
    rng = np.random.default_rng(8)
    n = 1000
    x, y = (rng.integers(-(2**31), 2**31, n, dtype=np.int64) >> rng.integers(0, 31, n) for _ in range(2))
    out = run(build, arch, "integers", 25, x.astype(np.int32), y.astype(np.int32))
    wrong = []
    for i, (v, w) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        expected = [value & 0xFFFFFFFF for value in integer_results(v, w)]
        actual = out[:, i].view(np.uint32).tolist()
        wrong += [(row, v, w, a, b) for row, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
    assert not wrong, f"{len(wrong)} differ; (function, x, y, result, expected): {wrong[:5]}"


def integer_results(v, w):
    """What the kernel `integers` computes, with Python's integers; results modulo 2^32."""
    uv, uw = v & 0xFFFFFFFF, w & 0xFFFFFFFF

    def lanes(value, bits, signed):
        parts = [value >> shift & (1 << bits) - 1 for shift in range(0, 32, bits)]
        return [part - (1 << bits) if signed and part >> bits - 1 else part for part in parts]

    def join(parts, bits):
        return sum((part & (1 << bits) - 1) << bits * i for i, part in enumerate(parts))

    def signed(value, bits):
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> bits - 1 else value

    def quotient(a, b):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    bits = f"{uv:032b}"
    product = signed(v * w, 64)
    both = uv | uw << 32
    divisor = signed((v ^ w) | 1, 32)
    halves_v, bytes_w = lanes(uv, 16, True), lanes(uw, 8, True)
    return [
        32 - len(bits.lstrip("0")),
        bits.count("1"),
        bits[::-1].find("1") + 1,
        int(bits[::-1], 2),
        v * w >> 32,
        uv * uw >> 32,
        join([both >> 8 * source & 255 for source in (6, 4, 1, 5)], 8),
        (uw << 32 | uv) << (w & 31) >> 32,
        (uw << 32 | uv) >> min(w & 63, 32),
        abs((v >> 2) - (w >> 2)) + 7,
        v + w >> 1,
        v + w + 1 >> 1,
        sum(a * b for a, b in zip(lanes(uv, 8, True), bytes_w, strict=True)) + 100,
        halves_v[0] * bytes_w[0] + halves_v[1] * bytes_w[1] + 5,
        join([a + b for a, b in zip(lanes(uv, 8, False), lanes(uw, 8, False), strict=True)], 8),
        join([max(a, b) for a, b in zip(halves_v, lanes(uw, 16, True), strict=True)], 16),
        join([abs(a - b) for a, b in zip(lanes(uv, 8, False), lanes(uw, 8, False), strict=True)], 8),
        join([-(a > b) for a, b in zip(lanes(uv, 8, True), bytes_w, strict=True)], 8),
        signed(v, 24) * signed(w, 24),
        64 - (product & (1 << 64) - 1).bit_length(),
        signed(v << 31, 64) * signed(w << 29, 64) >> 64,
        (v * 0x9E3779B97F4A7C15 & (1 << 64) - 1) // (uw | 1),
        product - quotient(product, divisor) * divisor,
        max(signed((v >> 1) + (w >> 1), 32), v, 0),
        min(v, w, v ^ w),
    ]
