"""Triton's tensor descriptors against NumPy: TMA copies and wgmma on sm_90, plain pointers on sm_80."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the wheel triton==3.9.0")

from emulator.tests.oracles.formats import decode, encode, grid, raw_dtype
from emulator.tests.oracles.triton_compile import Descriptor, compile_kernel
from emulator.tests.oracles.triton_kernels import tma

ARCHES = pytest.mark.parametrize("arch", [80, 90])
SEEDS = pytest.mark.parametrize("seed", [0, 1])


def descriptor_type(kind, *box):
    return f"tensordesc<{kind}[{','.join(map(str, box))}]>"


def integers(shape, kind, seed=1):
    """Small whole numbers as an array of the kind's patterns."""
    low = 0 if kind.startswith("u") else -60
    values = np.random.default_rng(seed).integers(low, 60, shape)
    return encode(values.astype(np.float64), kind) if kind[0] in "fb" else values.astype(raw_dtype(kind))


@ARCHES
@pytest.mark.parametrize("kernel", [tma.copy_2d, tma.add_one_2d], ids=["copy", "add_one"])
@pytest.mark.parametrize("kind", ["bf16", "fp32", "i8", "i32"])
@pytest.mark.parametrize("box", [(32, 64), (8, 16), (64, 128)])
def test_copy_2d(make_gpu, arch, kernel, kind, box):
    # Edges that no box meets; rows are multiples of 16 bytes.
    gpu = make_gpu(arch)
    x = integers((100, 176), kind)
    source, target = gpu.array(x), gpu.empty(x.shape, x.dtype)
    compiled = compile_kernel(
        kernel, arch, dict.fromkeys(("src", "dst"), descriptor_type(kind, *box)), ROWS=box[0], COLUMNS=box[1]
    )
    blocks = (-(-x.shape[0] // box[0]), -(-x.shape[1] // box[1]))
    compiled.launch(gpu, blocks, Descriptor(source, kind), Descriptor(target, kind))
    expected = decode(x, kind) + (kernel is tma.add_one_2d)
    np.testing.assert_array_equal(decode(target, kind), expected)


# How Triton pads without the TMA unit is not under test.
@pytest.mark.parametrize(("arch", "padding"), [(80, "zero"), (90, "zero"), (90, "nan")])
@pytest.mark.parametrize("corner", [(0, 0), (-3, -5), (37, 30), (-16, 0), (40, 200), (8, -31)])
def test_load_outside(make_gpu, arch, corner, padding):
    gpu = make_gpu(arch)
    x = np.random.default_rng(2).standard_normal((40, 60)).astype(np.float32)
    compiled = compile_kernel(
        tma.load_shifted, arch,
        {"src": descriptor_type("fp32", 16, 32), "out": "*fp32", "row": "i32", "column": "i32"}, ROWS=16, COLUMNS=32,
    )  # fmt: skip
    out = gpu.empty((16, 32))
    compiled.launch(gpu, 1, Descriptor(gpu.array(x), padding=padding), out, *corner)
    around = np.full((40 + 200, 60 + 400), 0 if padding == "zero" else np.nan, np.float32)
    around[100:140, 200:260] = x
    row, column = corner[0] + 100, corner[1] + 200
    np.testing.assert_array_equal(out, around[row : row + 16, column : column + 32])


@ARCHES
def test_copy_1d(make_gpu, arch):
    gpu = make_gpu(arch)
    x = np.arange(1000, dtype=np.float32)
    out = gpu.empty(1000)
    compiled = compile_kernel(tma.copy_1d, arch, dict.fromkeys(("src", "dst"), descriptor_type("fp32", 128)), BLOCK=128)
    compiled.launch(gpu, 8, Descriptor(gpu.array(x)), Descriptor(out))
    np.testing.assert_array_equal(out, x * 2)


@ARCHES
def test_copy_3d(make_gpu, arch):
    gpu = make_gpu(arch)
    x = integers((5, 40, 72), "fp16")
    out = gpu.empty(x.shape, np.uint16)
    compiled = compile_kernel(
        tma.copy_3d, arch, dict.fromkeys(("src", "dst"), descriptor_type("fp16", 2, 16, 32)), A=2, B=16, C=32
    )
    compiled.launch(gpu, (3, 3, 3), Descriptor(gpu.array(x), "fp16"), Descriptor(out, "fp16"))
    np.testing.assert_array_equal(decode(out, "fp16"), 2 * decode(x, "fp16"))


@ARCHES
def test_copy_5d(make_gpu, arch):
    gpu = make_gpu(arch)
    x = integers((2, 3, 6, 8, 16), "fp16")
    out = gpu.empty(x.shape, np.uint16)
    compiled = compile_kernel(
        tma.copy_5d,
        arch,
        dict.fromkeys(("src", "dst"), descriptor_type("fp16", 1, 2, 4, 8, 16)),
        A=1,
        B=2,
        C=4,
        D=8,
        E=16,
    )
    compiled.launch(gpu, (2, 2, 2), Descriptor(gpu.array(x), "fp16"), Descriptor(out, "fp16"))
    np.testing.assert_array_equal(decode(out, "fp16"), 2 * decode(x, "fp16"))


@ARCHES
@SEEDS
@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("add", "fp32"), ("add", "bf16"), ("add", "fp16"), ("add", "i32"), ("add", "u64"), ("min", "i32"),
        ("max", "u32"), ("min", "i64"), ("max", "i64"), ("and", "u32"), ("or", "u32"), ("xor", "i64"),
    ],
)  # fmt: skip
def test_reduce(make_gpu, arch, seed, op, kind):
    tiles, rows, columns = 4, 16, 32
    gpu = make_gpu(arch, seed)
    x, start = integers((tiles * rows, 2 * columns), kind, 3), integers((rows, 2 * columns), kind, 4)
    out = gpu.array(start)
    box = descriptor_type(kind, rows, columns)
    compiled = compile_kernel(tma.reduce_2d, arch, {"src": box, "dst": box}, OP=op, ROWS=rows, COLUMNS=columns)
    compiled.launch(gpu, (tiles, 2), Descriptor(gpu.array(x), kind), Descriptor(out, kind))
    parts = np.concatenate([decode(start, kind)[None], decode(x, kind).reshape(tiles, rows, -1)])
    combine = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[op]  # fmt: skip
    # Whole numbers up to 300 are no bf16: rounding after each addition keeps them within 2.
    difference = decode(out, kind).astype(np.float64) - combine.reduce(parts).astype(np.float64)
    assert np.abs(difference).max() <= (2 if (op, kind) == ("add", "bf16") else 0)


@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize(
    ("arch", "kind"),
    [(arch, kind) for arch in (80, 90) for kind in ("bf16", "fp16", "fp32", "fp8e5")] + [(90, "fp8e4nv")],
)
def test_matmul_layouts(make_gpu, arch, a_transposed, b_transposed, kind):
    m, n, k, bm, bn, bk = 128, 64, 96, 64, 64, 32
    rng = np.random.default_rng(5)
    x, y = grid(rng, (m, k)), grid(rng, (k, n))
    gpu = make_gpu(arch)
    a = gpu.array(encode(x.T if a_transposed else x, kind))
    b = gpu.array(encode(y.T if b_transposed else y, kind))
    c = gpu.empty((m, n))
    boxes = {
        "a": descriptor_type(kind, *((bk, bm) if a_transposed else (bm, bk))),
        "b": descriptor_type(kind, *((bn, bk) if b_transposed else (bk, bn))),
        "c": descriptor_type("fp32", bm, bn),
        "K": "i32",
    }
    compiled = compile_kernel(tma.matmul, arch, boxes, BM=bm, BN=bn, BK=bk, A_T=a_transposed, B_T=b_transposed)
    compiled.launch(gpu, (m // bm, n // bn), Descriptor(a, kind), Descriptor(b, kind), Descriptor(c), k)
    np.testing.assert_array_equal(c, x @ y)


@SEEDS
@pytest.mark.parametrize(
    ("tile", "warps", "stages"),
    [
        ((64, 8, 64), 4, 2), ((64, 16, 32), 4, 3), ((128, 256, 64), 8, 2), ((256, 128, 32), 8, 3),
        ((64, 128, 16), 4, 4), ((128, 128, 128), 8, 1), ((64, 64, 64), 8, 2),
    ],
)  # fmt: skip
def test_matmul_tiles(make_gpu, seed, tile, warps, stages):
    """Other widths of wgmma, other swizzles, ragged edges."""
    bm, bn, bk = tile
    m, n, k = 200, 264, 168
    rng = np.random.default_rng(6)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    gpu = make_gpu(90, seed)
    c = gpu.empty((m, n), np.uint16)
    boxes = {
        "a": descriptor_type("bf16", bm, bk), "b": descriptor_type("bf16", bn, bk),
        "c": descriptor_type("bf16", bm, bn), "K": "i32",
    }  # fmt: skip
    compiled = compile_kernel(
        tma.matmul, 90, boxes, options={"num_warps": warps, "num_stages": stages}, BM=bm, BN=bn, BK=bk, A_T=False,
        B_T=True,
    )  # fmt: skip
    a, b = (Descriptor(gpu.array(encode(part, "bf16")), "bf16") for part in (x, y))
    compiled.launch(gpu, (-(-m // bm), -(-n // bn)), a, b, Descriptor(c, "bf16"), k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))


@ARCHES
def test_accumulate_with_scale(make_gpu, arch):
    m, n, k = 128, 64, 128
    rng = np.random.default_rng(7)
    x, y, start = grid(rng, (m, k)), grid(rng, (n, k)), grid(rng, (m, n))
    gpu = make_gpu(arch)
    c = gpu.array(encode(start, "bf16"))
    boxes = dict.fromkeys("abc", descriptor_type("bf16", 64, 64)) | {"K": "i32", "alpha": "fp32", "beta": "fp32"}
    compiled = compile_kernel(tma.matmul_accumulate, arch, boxes, BM=64, BN=64, BK=64)
    a, b = (Descriptor(gpu.array(encode(part, "bf16")), "bf16") for part in (x, y))
    compiled.launch(gpu, (2, 1), a, b, Descriptor(c, "bf16"), k, 0.5, -2.0)
    np.testing.assert_array_equal(c, encode(0.5 * (x @ y.T) - 2 * start, "bf16"))


@ARCHES
@SEEDS
def test_descriptors_of_the_kernel(make_gpu, arch, seed):
    m, n, k = 96, 160, 144
    rng = np.random.default_rng(8)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    gpu = make_gpu(arch, seed)
    c = gpu.empty((m, n), np.uint16)
    compiled = compile_kernel(
        tma.matmul_device, arch, dict.fromkeys("abc", "*bf16") | dict.fromkeys("MNK", "i32"),
        multiples_of_16=("M", "N", "K"), BM=64, BN=64, BK=64,
    )  # fmt: skip
    compiled.launch(gpu, (2, 3), gpu.array(encode(x, "bf16")), gpu.array(encode(y, "bf16")), c, m, n, k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))


@SEEDS
def test_persistent(make_gpu, seed):
    m, n, k = 256, 192, 192
    rng = np.random.default_rng(9)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    gpu = make_gpu(90, seed)
    c = gpu.empty((m, n), np.uint16)
    boxes = {
        "a": descriptor_type("bf16", 128, 64), "b": descriptor_type("bf16", 64, 64),
        "c": descriptor_type("bf16", 128, 64), **dict.fromkeys("MNK", "i32"),
    }  # fmt: skip
    compiled = compile_kernel(tma.matmul_persistent, 90, boxes, BM=128, BN=64, BK=64)
    a, b = (Descriptor(gpu.array(encode(part, "bf16")), "bf16") for part in (x, y))
    compiled.launch(gpu, 4, a, b, Descriptor(c, "bf16"), m, n, k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))


@SEEDS
@pytest.mark.parametrize("tile", [(128, 64), (128, 256), (256, 64)])
def test_roles(make_gpu, seed, tile):
    bm, bn = tile
    m, n, k = 320, 272, 208
    rng = np.random.default_rng(11)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    gpu = make_gpu(90, seed)
    c = gpu.empty((m, n), np.uint16)
    compiled = compile_kernel(
        tma.matmul_roles, 90, dict.fromkeys("abc", "*bf16") | dict.fromkeys("MNK", "i32"),
        multiples_of_16=("M", "N", "K"), BM=bm, BN=bn, BK=64,
    )  # fmt: skip
    assert "setmaxnreg" in compiled.ptx
    assert compiled.num_threads == 384
    compiled.launch(gpu, 3, gpu.array(encode(x, "bf16")), gpu.array(encode(y, "bf16")), c, m, n, k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))


@SEEDS
def test_two_block_clusters(make_gpu, seed):
    m, n, k = 256, 128, 192
    rng = np.random.default_rng(10)
    x, y = grid(rng, (m, k)), grid(rng, (n, k))
    gpu = make_gpu(90, seed)
    c = gpu.empty((m, n), np.uint16)
    boxes = {
        "a": descriptor_type("bf16", 128, 64), "b": descriptor_type("bf16", 128, 64),
        "c": descriptor_type("bf16", 128, 128), "K": "i32",
    }  # fmt: skip
    compiled = compile_kernel(
        tma.matmul, 90, boxes, options={"num_ctas": 2}, BM=128, BN=128, BK=64, A_T=False, B_T=True
    )
    assert compiled.num_ctas == 2
    a, b = (Descriptor(gpu.array(encode(part, "bf16")), "bf16") for part in (x, y))
    compiled.launch(gpu, (2, 1), a, b, Descriptor(c, "bf16"), k)
    np.testing.assert_array_equal(c, encode(x @ y.T, "bf16"))
