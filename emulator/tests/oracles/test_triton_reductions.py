"""Triton's reductions, scans, sorts, histograms, norms and atomics against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")

from emulator.tests.oracles.formats import HALF_ULP, decode, encode, raw_dtype
from emulator.tests.oracles.triton_compile import compile_kernel
from emulator.tests.oracles.triton_kernels import reductions

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@ARCHES
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["sum", "max", "min", "argmax", "argmin", "xor", "custom"])
@pytest.mark.parametrize("warps", [1, 4])
def test_reduce_2d(make_gpu, arch, axis, op, warps):
    rows, columns = 32, 64
    rng = np.random.default_rng(1)
    kind = "i32" if op == "xor" else "fp32"
    # Few values, so that there are ties for argmin and argmax; all sums are exact.
    x = rng.integers(-50, 50, (rows, columns)).astype(raw_dtype(kind))
    out_kind = "i32" if op.startswith("arg") else kind
    compiled = compile_kernel(
        reductions.reduce_2d, arch, {"x": "*" + kind, "out": "*" + out_kind}, options={"num_warps": warps},
        ROWS=rows, COLUMNS=columns, AXIS=axis, OP=op,
    )  # fmt: skip
    gpu = make_gpu(arch)
    out = gpu.empty(columns if axis == 0 else rows, raw_dtype(out_kind))
    compiled.launch(gpu, 1, gpu.array(x), out)
    reference = {
        "sum": np.sum, "max": np.max, "min": np.min, "argmax": np.argmax, "argmin": np.argmin,
        "xor": np.bitwise_xor.reduce, "custom": np.max,
    }[op]  # fmt: skip
    np.testing.assert_array_equal(out, reference(x, axis))


@ARCHES
@pytest.mark.parametrize("kind", ["i32", "i64", "fp32", "fp64"])
def test_reduce_all(make_gpu, arch, kind):
    n, block = 9000, 2048
    x = np.random.default_rng(2).integers(-1000, 1000, n).astype(raw_dtype(kind))
    compiled = compile_kernel(
        reductions.reduce_all, arch, {"x": "*" + kind, "out": "*" + kind, "n": "i32"}, options={"num_warps": 8},
        BLOCK=block,
    )  # fmt: skip
    gpu = make_gpu(arch)
    out = gpu.empty(5, raw_dtype(kind))
    compiled.launch(gpu, 5, gpu.array(x), out, n)
    np.testing.assert_array_equal(out, [x[i : i + block].sum() for i in range(0, n, block)])


@ARCHES
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["sum", "sum_reverse", "prod", "max"])
def test_scan_2d(make_gpu, arch, axis, op):
    rows, columns = 64, 128
    rng = np.random.default_rng(3)
    x = rng.integers(-9, 10, (rows, columns)).astype(np.float32)
    if op == "prod":
        x = np.exp2(rng.integers(-1, 2, (rows, columns))).astype(np.float32)  # products of powers of two are exact
    compiled = compile_kernel(
        reductions.scan_2d, arch, {"x": "*fp32", "out": "*fp32"}, ROWS=rows, COLUMNS=columns, AXIS=axis, OP=op
    )
    gpu = make_gpu(arch)
    out = gpu.empty(x.shape)
    compiled.launch(gpu, 1, gpu.array(x), out)
    expected = {
        "sum": lambda: np.cumsum(x, axis),
        "sum_reverse": lambda: np.flip(np.cumsum(np.flip(x, axis), axis), axis),
        "prod": lambda: np.cumprod(x, axis),
        "max": lambda: np.maximum.accumulate(x, axis),
    }[op]()
    np.testing.assert_array_equal(out, expected)


@ARCHES
def test_linear_recurrence(make_gpu, arch):
    rows, columns = 16, 64
    rng = np.random.default_rng(4)
    a = rng.choice([-1.0, 0.0, 1.0, 1.0], (rows, columns)).astype(np.float32)
    b = rng.integers(-5, 6, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        reductions.linear_recurrence, arch, dict.fromkeys(("a", "b", "out"), "*fp32"), ROWS=rows, COLUMNS=columns
    )
    gpu = make_gpu(arch)
    out = gpu.empty(a.shape)
    compiled.launch(gpu, 1, gpu.array(a), gpu.array(b), out)
    state = np.zeros(rows, np.float32)
    for t in range(columns):
        state = a[:, t] * state + b[:, t]
        np.testing.assert_array_equal(out[:, t], state)


@ARCHES
def test_welford(make_gpu, arch):
    rows, columns = 6, 1024
    x = (np.random.default_rng(5).standard_normal((rows, columns)) * 3 + 100).astype(np.float32)
    compiled = compile_kernel(
        reductions.welford, arch, dict.fromkeys(("x", "mean", "variance"), "*fp32"), COLUMNS=columns
    )
    gpu = make_gpu(arch)
    mean, variance = gpu.empty(rows), gpu.empty(rows)
    compiled.launch(gpu, rows, gpu.array(x), mean, variance)
    exact = x.astype(np.float64)
    # A tree of 10 levels; each rounds to 2^-24 of the mean, and div.full is off by 2 ulp.
    np.testing.assert_allclose(mean, exact.mean(1), rtol=2.0**-20)
    np.testing.assert_allclose(variance, exact.var(1), rtol=1e-4)


@ARCHES
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 512), (16, 64)])
def test_sort(make_gpu, arch, descending, rows, columns):
    x = np.random.default_rng(6).integers(-500, 500, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        reductions.sort_rows, arch, {"x": "*fp32", "out": "*fp32"}, ROWS=rows, COLUMNS=columns, DESCENDING=descending
    )
    gpu = make_gpu(arch)
    out = gpu.empty(x.shape)
    compiled.launch(gpu, 1, gpu.array(x), out)
    expected = np.sort(x, 1)
    np.testing.assert_array_equal(out, expected[:, ::-1] if descending else expected)


@ARCHES
def test_topk(make_gpu, arch):
    rows, columns, k = 16, 128, 8
    x = np.random.default_rng(7).standard_normal((rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        reductions.topk_rows, arch, {"x": "*fp32", "out": "*fp32"}, ROWS=rows, COLUMNS=columns, K=k
    )
    gpu = make_gpu(arch)
    out = gpu.empty((rows, k))
    compiled.launch(gpu, 1, gpu.array(x), out)
    np.testing.assert_array_equal(out, np.sort(x, 1)[:, : -k - 1 : -1])


@ARCHES
@SEEDS
def test_histogram(make_gpu, arch, seed):
    n, bins, block = 5000, 64, 1024
    rng = np.random.default_rng(8)
    x = np.minimum(rng.exponential(9, n), bins - 1).astype(np.int32)
    weight = (rng.integers(-16, 17, n) / 8).astype(np.float32)
    gpu = make_gpu(arch, seed)

    compiled = compile_kernel(
        reductions.histogram_block, arch, {"x": "*i32", "out": "*i32", "n": "i32"}, BLOCK=block, BINS=bins
    )
    counts = gpu.zeros(bins, np.int32)
    compiled.launch(gpu, 5, gpu.array(x), counts, n)
    expected = np.bincount(x, minlength=bins)
    np.testing.assert_array_equal(counts, expected)

    compiled = compile_kernel(
        reductions.histogram_atomic, arch,
        {"x": "*i32", "weight": "*fp32", "counts": "*i32", "sums": "*fp32", "n": "i32"}, BLOCK=block,
    )  # fmt: skip
    counts, sums = gpu.zeros(bins, np.int32), gpu.zeros(bins)
    compiled.launch(gpu, 5, gpu.array(x), gpu.array(weight), counts, sums, n)
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(sums, np.bincount(x, weight, bins))  # multiples of 1/8: exact in any order


@ARCHES
@pytest.mark.parametrize(("kind", "columns", "block"), [("fp32", 1000, 1024), ("bf16", 333, 512), ("fp16", 2048, 2048)])
def test_softmax(make_gpu, arch, kind, columns, block):
    rows = 5
    x = encode(np.random.default_rng(9).standard_normal((rows, columns)) * 4, kind)
    compiled = compile_kernel(
        reductions.softmax, arch, {"x": "*" + kind, "out": "*" + kind, "columns": "i32"}, BLOCK=block
    )
    gpu = make_gpu(arch)
    out = gpu.empty(x.shape, raw_dtype(kind))
    compiled.launch(gpu, rows, gpu.array(x), out, columns)
    e = np.exp(decode(x, kind) - decode(x, kind).max(1, keepdims=True))
    # Exponents down to -35 times log2(e), rounded to 2^-24, plus 2 ulp of ex2.approx, a sum of a tree, a quotient.
    tolerance = 2.0**-18 + HALF_ULP[kind]
    np.testing.assert_allclose(decode(out, kind), e / e.sum(1, keepdims=True), rtol=tolerance, atol=2.0**-25)


@ARCHES
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_layer_norm(make_gpu, arch, kind):
    rows, columns, epsilon = 4, 700, 1e-5
    rng = np.random.default_rng(10)
    x = encode(rng.standard_normal((rows, columns)) * 2 + 1, kind)
    weight, bias = (rng.standard_normal(columns).astype(np.float32) for _ in range(2))
    compiled = compile_kernel(
        reductions.layer_norm, arch,
        {"x": "*" + kind, "weight": "*fp32", "bias": "*fp32", "out": "*" + kind, "mean": "*fp32", "rstd": "*fp32",
         "columns": "i32", "epsilon": "fp32"}, BLOCK=256,
    )  # fmt: skip
    gpu = make_gpu(arch)
    out, mean, rstd = gpu.empty(x.shape, raw_dtype(kind)), gpu.empty(rows), gpu.empty(rows)
    compiled.launch(gpu, rows, gpu.array(x), gpu.array(weight), gpu.array(bias), out, mean, rstd, columns, epsilon)
    v = decode(x, kind)
    exact_mean, exact_rstd = v.mean(1), 1 / np.sqrt(v.var(1) + epsilon)
    # Sums of 700 terms in trees of 12 levels at most.
    np.testing.assert_allclose(mean, exact_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rstd, exact_rstd, rtol=1e-5)
    expected = (v - exact_mean[:, None]) * exact_rstd[:, None] * weight + bias
    np.testing.assert_allclose(decode(out, kind), expected, rtol=HALF_ULP[kind] + 1e-5, atol=1e-5)


@ARCHES
@SEEDS
def test_atomic_operators(make_gpu, arch, seed):
    n = 800
    x = np.random.default_rng(11).integers(-(2**31), 2**31, n, dtype=np.int64).astype(np.int32)
    compiled = compile_kernel(
        reductions.atomic_operators, arch, {"x": "*i32", "target": "*i32", "previous": "*i32", "n": "i32"}, BLOCK=256
    )
    gpu = make_gpu(arch, seed)
    target = gpu.array(np.array([5, -(2**31), 2**31 - 1, -1, 0, 0, 0], np.int32))
    previous = gpu.empty(n, np.int32)
    compiled.launch(gpu, 4, gpu.array(x), target, previous, n)
    np.testing.assert_array_equal(
        target[:6],
        [5 + n, x.max(), x.min(), np.bitwise_and.reduce(x), np.bitwise_or.reduce(x), np.bitwise_xor.reduce(x)],
    )
    assert target[6] in x
    np.testing.assert_array_equal(np.sort(previous), 5 + np.arange(n))


@ARCHES
def test_atomic_float_max(make_gpu, arch):
    x = np.random.default_rng(12).standard_normal(600).astype(np.float32)
    compiled = compile_kernel(
        reductions.atomic_float_max, arch, {"x": "*fp32", "target": "*fp32", "n": "i32"}, BLOCK=256
    )
    gpu = make_gpu(arch)
    target = gpu.array(np.array([-np.inf, np.inf], np.float32))
    compiled.launch(gpu, 3, gpu.array(x), target, x.size)
    np.testing.assert_array_equal(target, [x.max(), x.min()])


@ARCHES
@SEEDS
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_atomic_rows(make_gpu, arch, seed, kind):
    rows, columns, targets = 24, 256, 5
    rng = np.random.default_rng(13)
    x = encode(rng.integers(-4, 5, (rows, columns)), kind)  # sums of up to 24: exact in bf16
    index = rng.integers(0, targets, rows).astype(np.int32)
    compiled = compile_kernel(
        reductions.atomic_rows, arch, {"x": "*" + kind, "index": "*i32", "out": "*" + kind}, COLUMNS=columns
    )
    gpu = make_gpu(arch, seed)
    out = gpu.zeros((targets, columns), raw_dtype(kind))
    compiled.launch(gpu, rows, gpu.array(x), gpu.array(index), out)
    expected = np.zeros((targets, columns))
    np.add.at(expected, index, decode(x, kind))
    np.testing.assert_array_equal(decode(out, kind), expected)


@ARCHES
@SEEDS
def test_spin_lock(make_gpu, arch, seed):
    rows, columns = 12, 256
    x = np.random.default_rng(14).integers(-9, 10, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        reductions.locked_sum, arch, {"x": "*fp32", "out": "*fp32", "lock": "*i32"}, COLUMNS=columns
    )
    gpu = make_gpu(arch, seed)
    out, lock = gpu.zeros(columns), gpu.zeros(1, np.int32)
    compiled.launch(gpu, rows, gpu.array(x), out, lock)
    np.testing.assert_array_equal(out, x.sum(0))
    assert lock[0] == 0


@ARCHES
@SEEDS
def test_last_program(make_gpu, arch, seed):
    programs, block = 8, 256
    n = programs * block - 100
    x = np.random.default_rng(15).integers(-100, 100, n).astype(np.float32)
    compiled = compile_kernel(
        reductions.last_program, arch,
        {"x": "*fp32", "partial": "*fp32", "counter": "*i32", "out": "*fp32", "n": "i32"}, BLOCK=block,
        PROGRAMS=programs,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.empty(1)
    compiled.launch(gpu, programs, gpu.array(x), gpu.empty(programs), gpu.zeros(1, np.int32), out, n)
    assert out[0] == x.sum()


@ARCHES
@SEEDS
def test_relay(make_gpu, arch, seed):
    rows, columns = 9, 256
    x = np.random.default_rng(16).integers(-100, 100, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(reductions.relay, arch, {"x": "*fp32", "out": "*fp32", "flags": "*i32"}, COLUMNS=columns)
    gpu = make_gpu(arch, seed)
    out = gpu.empty(x.shape)
    compiled.launch(gpu, rows, gpu.array(x), out, gpu.zeros(rows, np.int32))
    np.testing.assert_array_equal(out, np.cumsum(x, 0))


@SEEDS
def test_dependent_launches(make_gpu, seed):
    n = 1000
    x = np.arange(n, dtype=np.float32)
    compiled = compile_kernel(
        reductions.dependent_double, 90, {"x": "*fp32", "out": "*fp32", "n": "i32"}, options={"launch_pdl": True},
        BLOCK=256,
    )  # fmt: skip
    assert "griddepcontrol.wait" in compiled.ptx
    gpu = make_gpu(90, seed)
    arrays = [gpu.array(x), gpu.empty(n), gpu.empty(n), gpu.empty(n)]
    for source, target in itertools.pairwise(arrays):
        compiled.launch(gpu, 4, source, target, n, programmatic=True)
    np.testing.assert_array_equal(arrays[-1], 8 * x)
