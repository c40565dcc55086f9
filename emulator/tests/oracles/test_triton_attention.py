"""Triton's fused attention against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")

from emulator.tests.oracles.formats import decode, encode
from emulator.tests.oracles.triton_compile import Descriptor, compile_kernel
from emulator.tests.oracles.triton_kernels import attention

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def problem(heads, length, d, causal):
    """Patterns of q, k and v, the exact output and the exact log2 of the softmax's denominator."""
    rng = np.random.default_rng(heads * length)
    q, k, v = (encode(rng.standard_normal((heads, length, d)), "bf16") for _ in range(3))
    scores = decode(q, "bf16") @ decode(k, "bf16").transpose(0, 2, 1) / math.sqrt(d)
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    best = scores.max(2, keepdims=True)
    e = np.exp(scores - best)
    total = e.sum(2, keepdims=True)
    return (q, k, v), e / total @ decode(v, "bf16"), ((best + np.log(total)) / math.log(2))[:, :, 0]


# The probabilities are rounded to bf16 (2^-9 of each on average, 2^-8 at most) before the second product, whose terms
# cancel; the output is rounded to bf16 once more. Outputs are averages of numbers of magnitude up to 4.
TOLERANCE = {"rtol": 2.0**-7, "atol": 2.0**-7}


@ARCHES
@SEEDS
@CAUSAL
@pytest.mark.parametrize(("d", "bm", "bn", "warps"), [(64, 64, 32, 4), (32, 128, 64, 8), (128, 64, 64, 4)])
def test_forward(make_gpu, arch, seed, causal, d, bm, bn, warps):
    heads, length = 2, 150
    (q, k, v), expected, expected_lse = problem(heads, length, d, causal)
    compiled = compile_kernel(
        attention.forward, arch,
        {**dict.fromkeys(("q", "k", "v", "out"), "*bf16"), "lse": "*fp32", "length": "i32", "scale": "fp32"},
        options={"num_warps": warps, "num_stages": 2}, D=d, BM=bm, BN=bn, CAUSAL=causal,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out, lse = gpu.empty(q.shape, np.uint16), gpu.empty((heads, length))
    scale = math.log2(math.e) / math.sqrt(d)
    compiled.launch(gpu, (-(-length // bm), heads), gpu.array(q), gpu.array(k), gpu.array(v), out, lse, length, scale)
    np.testing.assert_allclose(decode(out, "bf16"), expected, **TOLERANCE)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@ARCHES
@SEEDS
@CAUSAL
def test_forward_descriptors(make_gpu, arch, seed, causal):
    heads, length, d, bm, bn = 2, 192, 64, 64, 64
    (q, k, v), expected, _ = problem(heads, length, d, causal)

    def box(rows):
        return f"tensordesc<bf16[1,{rows},{d}]>"

    compiled = compile_kernel(
        attention.forward_tma, arch,
        {"q": box(bm), "k": box(bn), "v": box(bn), "out": box(bm), "length": "i32", "scale": "fp32"},
        D=d, BM=bm, BN=bn, CAUSAL=causal,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.empty(q.shape, np.uint16)
    inputs = [Descriptor(gpu.array(part), "bf16") for part in (q, k, v)]
    scale = math.log2(math.e) / math.sqrt(d)
    compiled.launch(gpu, (length // bm, heads), *inputs, Descriptor(out, "bf16"), length, scale)
    np.testing.assert_allclose(decode(out, "bf16"), expected, **TOLERANCE)


@SEEDS
@CAUSAL
def test_forward_roles(make_gpu, seed, causal):
    heads, length, d, bm, bn = 2, 256, 64, 128, 64
    (q, k, v), expected, _ = problem(heads, length, d, causal)
    compiled = compile_kernel(
        attention.forward_roles, 90,
        {**dict.fromkeys(("q", "k", "v", "out"), "*bf16"), "length": "i32", "scale": "fp32"},
        multiples_of_16=("length",), D=d, BM=bm, BN=bn, CAUSAL=causal,
    )  # fmt: skip
    assert "setmaxnreg" in compiled.ptx
    gpu = make_gpu(90, seed)
    out = gpu.empty(q.shape, np.uint16)
    scale = math.log2(math.e) / math.sqrt(d)
    compiled.launch(gpu, (length // bm, heads), *map(gpu.array, (q, k, v)), out, length, scale)
    np.testing.assert_allclose(decode(out, "bf16"), expected, **TOLERANCE)
