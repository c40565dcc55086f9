"""Gluon kernels against NumPy: every layout of wgmma's operands, rings of barriers, roles of warps, multicast."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")
from triton.experimental.gluon import language as gl

from emulator.tests.oracles.formats import decode, encode, grid, raw_dtype
from emulator.tests.oracles.triton_compile import Descriptor, compile_kernel
from emulator.tests.oracles.triton_kernels import hopper

SEEDS = pytest.mark.parametrize("seed", [0, 1])
BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "fp8e4nv": 8, "fp8e5": 8, "i8": 8}


def descriptor_type(kind, box, layout):
    return f"tensordesc<{kind}[{','.join(map(str, box))}],{layout!r}>".replace(" ", "")


def run_wgmma(gpu, kind, shape, a_layout, b_layout, *, instruction_n, a_in_registers=False, warps=4):
    m, n, k = shape
    rng = np.random.default_rng(m + n + k)
    integer = kind == "i8"
    x, y = (rng.integers(-128, 128, size).astype(float) if integer else grid(rng, size) for size in ((m, k), (k, n)))
    result = "i32" if integer else "fp32"
    compiled = compile_kernel(
        hopper.wgmma, 90, {"a": "*" + kind, "b": "*" + kind, "c": "*" + result}, options={"num_warps": warps},
        M=m, N=n, K=k, A_LAYOUT=a_layout, B_LAYOUT=b_layout, INSTRUCTION_N=instruction_n,
        A_IN_REGISTERS=a_in_registers, ACC=gl.int32 if integer else gl.float32,
    )  # fmt: skip
    assert f"m64n{instruction_n}k" in compiled.ptx
    out = gpu.empty((m, n), raw_dtype(result))
    compiled.launch(gpu, 1, gpu.array(encode(x, kind)), gpu.array(encode(y, kind)), out)
    np.testing.assert_array_equal(out, x @ y)


@SEEDS
@pytest.mark.parametrize("a_swizzle", [32, 64, 128])
@pytest.mark.parametrize("b_swizzle", [32, 64, 128])
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_operands_in_shared_memory(make_gpu, seed, a_swizzle, b_swizzle, a_transposed, b_transposed):
    """Transposed: contiguous along M, and along K for b, whose own order is [K, N]."""
    run_wgmma(
        make_gpu(90, seed), "bf16", (128, 64, 64), gl.NVMMASharedLayout(a_swizzle, 16, 2, a_transposed),
        gl.NVMMASharedLayout(b_swizzle, 16, 2, b_transposed), instruction_n=64,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["fp16", "fp32", "fp8e4nv", "fp8e5", "i8"])
@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("a_in_registers", [False, True])
def test_types(make_gpu, kind, swizzle, a_in_registers):
    """Types other than of 16 bits have both operands contiguous along K."""
    bits = BITS[kind]
    run_wgmma(
        make_gpu(90), kind, (64, 32, 128), gl.NVMMASharedLayout(swizzle, bits, 2, False),
        gl.NVMMASharedLayout(swizzle, bits, 2, True), instruction_n=32, a_in_registers=a_in_registers,
    )  # fmt: skip


@pytest.mark.parametrize("instruction_n", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("a_in_registers", [False, True])
@pytest.mark.parametrize("warps", [4, 8])
def test_widths(make_gpu, instruction_n, a_in_registers, warps):
    run_wgmma(
        make_gpu(90), "bf16", (128, 256, 32), gl.NVMMASharedLayout(64, 16, 2, False),
        gl.NVMMASharedLayout(128, 16, 2, False), instruction_n=instruction_n, a_in_registers=a_in_registers,
        warps=warps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("completion", "seed"), [("random", 0), ("random", 1), ("latest", 0), ("lifo", 0), ("eager", 0)]
)
@pytest.mark.parametrize(("stages", "k"), [(2, 256), (3, 64), (4, 500)])
def test_roles(make_gpu, completion, seed, stages, k):
    m, n = 128, 192
    rng = np.random.default_rng(3)
    # Rows of a multiple of 16 bytes; the last step of K is cut short.
    k = -(-k // 8) * 8
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    layout = gl.NVMMASharedLayout(128, 16, 2)
    box = descriptor_type("bf16", (64, 64), layout)
    compiled = compile_kernel(hopper.matmul_roles, 90, {"a": box, "b": box, "c": box, "K": "i32"}, STAGES=stages)
    assert "setmaxnreg" in compiled.ptx
    gpu = make_gpu(90, seed, completion=completion)
    c = gpu.empty((m, n), np.uint16)
    a, b = (Descriptor(gpu.array(encode(part, "bf16")), "bf16") for part in (x, y))
    compiled.launch(gpu, (m // 64, n // 64), a, b, Descriptor(c, "bf16"), k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))


@SEEDS
def test_multicast(make_gpu, seed):
    rows, columns = 32, 64
    both = [[0, 0]]  # the second block of the cluster holds the same rows
    source = gl.NVMMASharedLayout(128, 16, 2, cga_layout=both)
    x = np.random.default_rng(4).integers(-100, 100, (3 * rows, columns)).astype(np.float64)
    compiled = compile_kernel(
        hopper.multicast_copy, 90,
        {"src": descriptor_type("bf16", (rows, columns), source), "out": "*bf16"},
        options={"num_ctas": 2}, ROWS=rows, COLUMNS=columns,
        LAYOUT=gl.BlockedLayout([1, 2], [1, 32], [4, 1], [1, 0], cga_layout=both),
    )  # fmt: skip
    assert "multicast::cluster" in compiled.ptx
    gpu = make_gpu(90, seed)
    out = gpu.empty(x.shape, np.uint16)
    compiled.launch(gpu, 3, Descriptor(gpu.array(encode(x, "bf16")), "bf16"), out)
    np.testing.assert_array_equal(decode(out, "bf16"), 2 * x)


@SEEDS
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_ring_of_asynchronous_copies(make_gpu, seed, arch, rows):
    columns = 512
    x = np.random.default_rng(5).integers(-100, 100, (rows, columns)).astype(np.float32)
    compiled = compile_kernel(
        hopper.ampere_ring, arch, {"x": "*fp32", "out": "*fp32", "rows": "i32"}, COLUMNS=columns, STAGES=3
    )
    assert "cp.async.mbarrier.arrive.noinc" in compiled.ptx
    gpu = make_gpu(arch, seed)
    out = gpu.empty(columns)
    compiled.launch(gpu, 1, gpu.array(x), out, rows)
    np.testing.assert_array_equal(out, x.sum(0))
