"""Triton's pieces of a mixture-of-experts layer against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")

from emulator.tests.oracles.formats import HALF_ULP, decode, encode, grid
from emulator.tests.oracles.triton_compile import compile_kernel
from emulator.tests.oracles.triton_kernels import moe

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@ARCHES
@SEEDS
@pytest.mark.parametrize(("tokens", "experts", "k"), [(100, 16, 2), (37, 64, 8)])
def test_route(make_gpu, arch, seed, tokens, experts, k):
    rng = np.random.default_rng(1)
    logits = encode(rng.standard_normal((tokens, experts)) * 2, "bf16")
    compiled = compile_kernel(
        moe.route, arch,
        {"logits": "*bf16", "weights": "*fp32", "experts": "*i32", "counts": "*i32", "tokens": "i32"},
        EXPERTS=experts, K=k, BLOCK=32,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    weights, chosen = gpu.empty((tokens, k)), gpu.empty((tokens, k), np.int32)
    counts = gpu.zeros(experts, np.int32)
    compiled.launch(gpu, -(-tokens // 32), gpu.array(logits), weights, chosen, counts, tokens)
    v = decode(logits, "bf16")
    e = np.exp(v - v.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    # Equal logits of bf16 have equal probabilities, and the first comes first.
    order = np.argsort(-v, 1, kind="stable")[:, :k]
    np.testing.assert_array_equal(chosen, order)
    np.testing.assert_array_equal(counts, np.bincount(order.ravel(), minlength=experts))
    # ex2.approx of up to 16 in magnitude, a tree of sums, div.full.
    np.testing.assert_allclose(weights, np.take_along_axis(p, order, 1), rtol=2.0**-18)


def offsets_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


@ARCHES
@SEEDS
@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ([70, 0, 1, 64, 130, 0, 15, 20], (64, 64, 32)),
        ([0, 0, 0, 33, 0, 0, 0, 0], (32, 64, 64)),
        ([17] * 8, (16, 32, 32)),
    ],
)
def test_grouped_matmul(make_gpu, arch, seed, sizes, tile):
    bm, bn, bk = tile
    n, k, tokens = 96, 128, 50
    rng = np.random.default_rng(2)
    offsets = offsets_of(sizes)
    rows = rng.integers(0, tokens, offsets[-1]).astype(np.int32)
    x, w = grid(rng, (tokens, k)), grid(rng, (len(sizes), n, k))
    compiled = compile_kernel(
        moe.grouped_matmul, arch,
        {"x": "*bf16", "w": "*bf16", "out": "*bf16", "row_index": "*i32", "offsets": "*i32", "N": "i32", "K": "i32"},
        multiples_of_16=("N", "K"), EXPERTS=len(sizes), BM=bm, BN=bn, BK=bk,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.empty((offsets[-1], n), np.uint16)
    compiled.launch(
        gpu,
        6,
        gpu.array(encode(x, "bf16")),
        gpu.array(encode(w, "bf16")),
        out,
        gpu.array(rows),
        gpu.array(offsets),
        n,
        k,
    )
    expected = np.concatenate([x[rows[a:b]] @ w[e].T for e, (a, b) in enumerate(itertools.pairwise(offsets))])
    np.testing.assert_array_equal(out, encode(expected, "bf16"))


@ARCHES
@SEEDS
def test_grouped_matmul_descriptors(make_gpu, arch, seed):
    sizes = [70, 0, 1, 64, 100, 9]
    n, k = 96, 128
    rng = np.random.default_rng(3)
    offsets = offsets_of(sizes)
    x, w = grid(rng, (offsets[-1], k)), grid(rng, (len(sizes), n, k))
    compiled = compile_kernel(
        moe.grouped_matmul_tma, arch,
        {"x": "*bf16", "w": "*bf16", "out": "*bf16", "offsets": "*i32", "N": "i32", "K": "i32"},
        multiples_of_16=("N", "K"), EXPERTS=len(sizes), BM=64, BN=64, BK=64,
    )  # fmt: skip
    gpu = make_gpu(arch, seed)
    out = gpu.empty((offsets[-1], n), np.uint16)
    compiled.launch(gpu, 5, gpu.array(encode(x, "bf16")), gpu.array(encode(w, "bf16")), out, gpu.array(offsets), n, k)
    expected = np.concatenate([x[a:b] @ w[e].T for e, (a, b) in enumerate(itertools.pairwise(offsets))])
    np.testing.assert_array_equal(out, encode(expected, "bf16"))


@ARCHES
def test_combine(make_gpu, arch):
    tokens, k, columns = 40, 3, 200
    rng = np.random.default_rng(4)
    x = encode(rng.standard_normal((tokens * k, columns)), "bf16")
    position = rng.permutation(tokens * k).reshape(tokens, k).astype(np.int32)
    weights = rng.random((tokens, k)).astype(np.float32)
    compiled = compile_kernel(
        moe.combine, arch, {"x": "*bf16", "position": "*i32", "weights": "*fp32", "out": "*bf16"},
        COLUMNS=columns, K=k, BLOCK=128,
    )  # fmt: skip
    gpu = make_gpu(arch)
    out = gpu.empty((tokens, columns), np.uint16)
    compiled.launch(gpu, (tokens, 2), gpu.array(x), gpu.array(position), gpu.array(weights), out)
    expected = (decode(x, "bf16")[position] * weights[:, :, None]).sum(1)
    # Three products and sums in fp32, which may cancel, then bf16.
    np.testing.assert_allclose(decode(out, "bf16"), expected, rtol=HALF_ULP["bf16"] + 2.0**-22, atol=2.0**-20)
