"""wmma.load, wmma.mma, wmma.store."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.matrix import formats, ptx_text
from emulator.tests.matrix.formats import BYTES

SHAPES = ((16, 16, 16), (32, 8, 16), (8, 32, 16))
GAP = 8  # elements from one row to the next, beyond the row


class Form(NamedTuple):
    shape: tuple[int, int, int]
    a: str
    c: str
    d: str
    layouts: str = "row.col"  # of A and B
    c_layout: str = "row"
    space: str = "global"
    saturate: bool = False

    @property
    def size(self) -> str:
        m, n, k = self.shape
        return f"m{m}n{n}k{k}"

    @property
    def name(self) -> str:
        return "_".join([self.size, self.a, self.c, self.d, self.layouts, self.c_layout, self.space]).replace(
            ".", "_"
        ) + ("_satfinite" if self.saturate else "")


FORMS = [
    *(Form(s, "f16", c, d) for s in SHAPES for c in ("f16", "f32") for d in ("f16", "f32")),
    *(Form(s, "bf16", "f32", "f32", layouts) for s in SHAPES for layouts in ("row.row", "col.col")),
    *(Form(s, t, "s32", "s32", saturate=x) for s in SHAPES for t in ("s8", "u8") for x in (False, True)),
    *(
        Form((16, 16, 8), "tf32", "f32", "f32", layouts, c)
        for layouts in ("row.col", "col.row")
        for c in ("row", "col")
    ),
    *(
        Form(SHAPES[0], "f16", "f32", "f32", f"{x}.{y}", z)
        for x in ("row", "col")
        for y in ("row", "col")
        for z in ("row", "col")
    ),
    *(Form(SHAPES[0], t, "f32", "f32", space="") for t in ("f16", "bf16")),
    Form((8, 8, 4), "f64", "f64", "f64"),
]
FORMS = list(dict.fromkeys(FORMS))


def registers(matrix: str, form: Form) -> int:
    """As the PTX ISA's table of fragments says."""
    m, n, k = form.shape
    kind = form.a if matrix in "ab" else form.c if matrix == "c" else form.d
    elements = {"a": m * k, "b": k * n, "c": m * n, "d": m * n}[matrix]
    if matrix in "ab" and kind == "f16":
        return 8
    return elements * BYTES[kind] // 32 // (8 if kind == "f64" else 4)


def source(form: Form) -> str:
    m, n, k = form.shape
    layout_a, layout_b = form.layouts.split(".")
    extents = {"a": (m, k, layout_a), "b": (k, n, layout_b), "c": (m, n, form.c_layout), "d": (m, n, form.c_layout)}
    kinds = {"a": form.a, "b": form.a, "c": form.c, "d": form.d}
    count = {x: registers(x, form) for x in "abcd"}
    space = f".{form.space}" if form.space else ""
    body = ""
    for x in "abc":
        rows, columns, layout = extents[x]
        stride = (columns if layout == "row" else rows) + GAP
        body += f"mov.u32 %r1, {stride};\n"
        body += f"wmma.load.{x}.sync.aligned.{layout}.{form.size}{space}.{kinds[x]} "
        body += f"{ptx_text.names(x, count[x])}, [%p_{x}], %r1;\n"
    types = f"{form.d}.{form.c}" if form.a == "f16" else f"{form.d}.{form.a}.{form.a}.{form.c}"
    satfinite = ".satfinite" if form.saturate else ""
    body += f"wmma.mma.sync.aligned.{form.layouts}.{form.size}.{types}{satfinite} "
    body += ", ".join(ptx_text.names(x, count[x]) for x in "dabc") + ";\n"
    rows, columns, layout = extents["d"]
    body += f"mov.u32 %r1, {(columns if layout == 'row' else rows) + GAP};\n"
    body += f"wmma.store.d.sync.aligned.{layout}.{form.size}{space}.{form.d} "
    body += f"[%p_d], {ptx_text.names('d', count['d'])}, %r1;\n"
    kind = {x: "f64" if form.a == "f64" else "f32" if kinds[x] == "f32" and x in "cd" else "b32" for x in "abcd"}
    declared = [f".reg .{kind[x]} %{x}<{count[x]}>;" for x in "abcd"]
    return ptx_text.kernel(form.name, body, pointers="abcd", registers=declared)


@cache
def text() -> str:
    return ptx_text.module([source(form) for form in FORMS], "sm_80")


def spread(bits: np.ndarray, layout: str) -> np.ndarray:
    """The matrix in memory, with a gap after each row or column."""
    lines = bits if layout == "row" else bits.T
    out = np.zeros((lines.shape[0], lines.shape[1] + GAP), lines.dtype)
    out[:, :-GAP] = lines
    return out


def run(form: Form, a: np.ndarray, b: np.ndarray, c: np.ndarray, **options: Any) -> np.ndarray:
    gpu = emulator.Gpu("A100", **options)
    layout_a, layout_b = form.layouts.split(".")
    arrays = [
        gpu.array(spread(formats.encode(a, form.a), layout_a)),
        gpu.array(spread(formats.encode(b, form.a), layout_b)),
        gpu.array(spread(formats.encode(c, form.c), form.c_layout)),
    ]
    out = gpu.zeros(arrays[2].shape, formats.encode(np.zeros(1), form.d).dtype)
    launch = gpu.load(text())[form.name](1, 32, *arrays, out)
    m, n, k = form.shape
    assert launch.counters.matrix_macs == m * n * k
    assert not out[:, -GAP:].any()
    values = formats.decode(out[:, :-GAP], form.d)
    return values if form.c_layout == "row" else values.T


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_exact_inputs(form: Form) -> None:
    rng = np.random.default_rng(0)
    m, n, k = form.shape
    a = formats.grid_values(rng, (m, k), form.a)
    b = formats.grid_values(rng, (k, n), form.a)
    c = formats.grid_values(rng, (m, n), form.c)
    assert_array_equal(run(form, a, b, c), a @ b + c)


@pytest.mark.parametrize("saturate", [False, True])
def test_integer_overflow(saturate: bool) -> None:
    form = Form(SHAPES[0], "s8", "s32", "s32", saturate=saturate)
    rng = np.random.default_rng(0)
    a, b = formats.grid_values(rng, (16, 16), "s8"), formats.grid_values(rng, (16, 16), "s8")
    c = np.where(np.arange(16) % 2, 2.0**31 - 1, -(2.0**31)) + np.zeros((16, 16))
    wide = (a @ b + c).astype(np.int64)
    want = np.clip(wide, -(2**31), 2**31 - 1) if saturate else (wide + 2**31) % 2**32 - 2**31
    assert_array_equal(run(form, a, b, c), want)


@pytest.mark.parametrize("accumulate", ["sequential", "exact", "truncate"])
def test_random_inputs(accumulate: str) -> None:
    form = Form(SHAPES[0], "f16", "f32", "f32")
    rng = np.random.default_rng(0)
    a, b, c = (formats.random_values(rng, (16, 16), name) for name in ("f16", "f16", "f32"))
    exact = a @ b + c
    got = run(form, a, b, c, accumulate=accumulate)
    if accumulate == "exact":
        assert_array_equal(got, exact.astype(np.float32))
    else:
        assert (np.abs(got - exact) <= 18 * 2.0**-23 * (np.abs(a) @ np.abs(b) + np.abs(c))).all()


def test_lanes_must_agree() -> None:
    body = """
    mov.u32 %r1, 16;
    mul.wide.u32 %w1, %lane, 2;
    add.u64 %w1, %w1, %p_a;
    wmma.load.a.sync.aligned.row.m16n16k16.global.bf16 {%a0, %a1, %a2, %a3}, [%w1], %r1;
    """
    entry = ptx_text.kernel("k", body, pointers="a", registers=[".reg .b32 %a<4>;"])
    with pytest.raises(emulator.Fault) as fault:
        emulator.Gpu("A100").load(ptx_text.module(entry, "sm_80"))["k"](1, 32, np.zeros(1024, np.uint16))
    assert fault.value.kind == "bad_argument"


def test_out_of_bounds() -> None:
    form = FORMS[0]
    gpu = emulator.Gpu("A100")
    a = gpu.zeros(100, np.uint16)
    with pytest.raises(emulator.Fault) as fault:
        gpu.load(text())[form.name](1, 32, a, a, a, a)
    assert fault.value.kind == "out_of_bounds"
