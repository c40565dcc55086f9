"""mma.sync: every shape and type, against NumPy."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.matrix import formats, fragments, ptx_text
from emulator.tests.matrix.formats import BYTES

TRIALS = 6


class Form(NamedTuple):
    m: int
    k: int
    a: str
    b: str
    d: str
    saturate: bool = False
    target: str = "sm_80"

    @property
    def opcode(self) -> str:
        satfinite = ".satfinite" if self.saturate else ""
        return f"mma.sync.aligned.m{self.m}n8k{self.k}.row.col{satfinite}.{self.d}.{self.a}.{self.b}.{self.d}"

    @property
    def name(self) -> str:
        return self.opcode.removeprefix("mma.sync.aligned.").replace(".", "_")


FORMS = [
    *(Form(16, k, "f16", "f16", d) for k in (8, 16) for d in ("f32", "f16")),
    *(Form(16, k, "bf16", "bf16", "f32") for k in (8, 16)),
    *(Form(16, k, "tf32", "tf32", "f32") for k in (4, 8)),
    *(
        Form(m, k, a, b, "s32", saturate)
        for m, k in ((8, 16), (16, 16), (16, 32))
        for a in ("s8", "u8")
        for b in ("s8", "u8")
        for saturate in (False, True)
    ),
    *(
        Form(16, k, a, b, d, target="sm_89")
        for k in (16, 32)
        for a in ("e4m3", "e5m2")
        for b in ("e4m3", "e5m2")
        for d in ("f32", "f16")
    ),
    Form(8, 4, "f64", "f64", "f64"),
    *(Form(16, k, "f64", "f64", "f64", target="sm_90") for k in (4, 8, 16)),
]
FLOAT_FORMS = [form for form in FORMS if not formats.is_integer(form.a)]


def registers(elements: int, name: str) -> int:
    return elements * max(BYTES[name], 1) // (8 if name == "f64" else 4)


def source(form: Form) -> str:
    a, b = fragments.mma_fragments(form.m, form.k, form.a)
    c = fragments.accumulator(form.m)
    bits = 64 if form.a == "f64" else 32
    count = {"a": registers(a.per_lane, form.a), "b": registers(b.per_lane, form.b), "c": registers(c.per_lane, form.d)}
    count["d"] = count["c"]
    operands = ", ".join(ptx_text.names(x, count[x]) for x in "dabc")
    body = "".join(ptx_text.load_registers(x, x, count[x], bits) for x in "abc")
    body += f"{form.opcode} {operands};\n" + ptx_text.store_registers("d", "d", count["d"], bits)
    kind = "f64" if bits == 64 else "b32"
    declared = [f".reg .{kind} %{x}<{count[x]}>;" for x in "abcd"]
    return ptx_text.kernel(form.name, body, pointers="abcd", registers=declared)


@cache
def text(target: str) -> str:
    return ptx_text.module([source(form) for form in FORMS if form.target == target], target)


def run(form: Form, a: np.ndarray, b: np.ndarray, c: np.ndarray, **options: Any) -> np.ndarray:
    """D of a batch of products, as values."""
    chip = {"sm_80": "A100", "sm_89": "H100", "sm_90": "H100"}[form.target]
    gpu = emulator.Gpu(chip, **options)
    kernel = gpu.load(text(form.target))[form.name]
    fragment_a, fragment_b = fragments.mma_fragments(form.m, form.k, form.a)
    fragment_c = fragments.accumulator(form.m)
    packed = [
        gpu.array(fragments.pack(formats.encode(values, name), fragment))
        for values, name, fragment in ((a, form.a, fragment_a), (b, form.b, fragment_b), (c, form.d, fragment_c))
    ]
    out = gpu.empty(packed[2].shape, packed[2].dtype)
    launch = kernel(len(a), 32, *packed, out)
    assert launch.counters.matrix_macs == len(a) * form.m * 8 * form.k
    bits = fragments.unpack(out, fragment_c, (form.m, 8), formats.encode(np.zeros(1), form.d).dtype.type)
    return formats.decode(bits, form.d)


def operands(form: Form, make: formats.Make, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        make(rng, (TRIALS, form.m, form.k), form.a),
        make(rng, (TRIALS, form.k, 8), form.b),
        make(rng, (TRIALS, form.m, 8), form.d),
    )


@pytest.mark.parametrize("accumulate", ["sequential", "exact", "truncate"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_exact_inputs(form: Form, accumulate: str) -> None:
    a, b, c = operands(form, formats.grid_values)
    assert_array_equal(run(form, a, b, c, accumulate=accumulate), a @ b + c)


@pytest.mark.parametrize("form", [f for f in FORMS if f.d == "s32"], ids=lambda form: form.name)
def test_integer_overflow(form: Form) -> None:
    a, b, c = operands(form, formats.grid_values)
    c = np.where(np.arange(8) % 2 == 0, 2**31 - 1 - np.abs(c) / 64, -(2**31) + np.abs(c) / 64).round()
    wide = (a @ b + c).astype(np.int64)
    want = np.clip(wide, -(2**31), 2**31 - 1) if form.saturate else (wide + 2**31) % 2**32 - 2**31
    assert (wide != want).any()
    assert_array_equal(run(form, a, b, c), want)


@pytest.mark.parametrize("accumulate", ["sequential", "exact", "truncate"])
@pytest.mark.parametrize("form", FLOAT_FORMS, ids=lambda form: form.name)
def test_random_inputs(form: Form, accumulate: str) -> None:
    a, b, c = operands(form, formats.random_values, seed=1)
    got = run(form, a, b, c, accumulate=accumulate)
    exact = a @ b + c
    size = np.abs(a) @ np.abs(b) + np.abs(c)
    if form.d == "f64":
        assert (np.abs(got - exact) <= 2.0**-50 * size).all()
        return
    rounding = {"f32": 2.0**-24, "f16": 2.0**-11}[form.d] * np.abs(exact)
    if accumulate == "exact":
        assert_array_equal(got, formats.decode(formats.encode_nearest(exact, form.d), form.d))
    elif accumulate == "sequential":
        assert (np.abs(got - exact) <= form.k * 2.0**-24 * size + rounding).all()
    else:
        kept = 13 if BYTES[form.a] == 1 else 25
        largest = np.maximum((np.abs(a)[..., :, :, None] * np.abs(b)[..., None, :, :]).max(-2), np.abs(c))
        assert (np.abs(got - exact) <= (form.k + 1) * largest * 2.0**-kept + 2 * rounding).all()


@pytest.mark.parametrize(
    ("accumulate", "small", "want"),
    [
        # 16 products, each too small for fp32 to notice beside 1.
        ("sequential", 1.5, 1.0),
        ("exact", 1.5, 1.0 + 24 * 2.0**-25),
        ("truncate", 1.5, 1.0 + 16 * 2.0**-25),
        ("truncate", 0.75, 1.0),
    ],
)
def test_what_is_lost(accumulate: str, small: float, want: float) -> None:
    form = Form(16, 16, "bf16", "bf16", "f32")
    a = np.full((1, 16, 16), small * 2.0**-10)
    b = np.full((1, 16, 8), 2.0**-15)
    c = np.ones((1, 16, 8))
    assert_array_equal(run(form, a, b, c, accumulate=accumulate), np.full((1, 16, 8), want))


def test_special_values() -> None:
    form = Form(16, 16, "bf16", "bf16", "f32")
    a = np.zeros((1, 16, 16))
    b = np.ones((1, 16, 8))
    a[0, 0, 3] = np.inf
    a[0, 1, 2:4] = np.inf, -np.inf
    a[0, 2, 7] = np.nan
    for accumulate in ("sequential", "exact", "truncate"):
        got = run(form, a, b, np.zeros((1, 16, 8)), accumulate=accumulate)[0]
        assert (got[0] == np.inf).all()
        assert np.isnan(got[1:3]).all()
        assert (got[3:] == 0).all()


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {a,a,a,a}, {a,a,a,a}, {a,a,a,a}, {a,a,a,a}, a, 0;", 0),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {a,a,a,a}, {a,a}, {a,a}, {a,a,a,a};", 0),
        ("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 0),
        ("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e4m3.e2m1.f32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 0),
        ("mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 1),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 1),
        ("mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16 {a,a}, {a,a,a,a}, {a,a}, {a,a};", 1),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {a,a,a,a}, {a,a}, {a,a}, {a,a,a,a};", 1),
        ("mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 1),
        ("mma.sync.aligned.m16n8k16.row.col.wrong.f32.f16.f16.f32 {a,a,a,a}, {a,a,a,a}, {a,a}, {a,a,a,a};", 1),
    ],
)
def test_refused(instruction: str, kind: int) -> None:
    body = re.sub(r"\ba(?=[,}])", "%a", instruction)
    source = ptx_text.kernel("k", body, pointers="o", registers=[".reg .b32 %a;"])
    text = f".version 8.8\n.target sm_90a\n.address_size 64\n{source}"
    out = np.zeros(1, np.uint32)
    with pytest.raises(emulator.Fault) as fault:
        emulator.Gpu("H100").load(text)["k"](1, 32, out)
    assert fault.value.kind == ("unsupported", "unknown_instruction")[kind]
    assert "mma" in str(fault.value)


def test_part_of_a_warp() -> None:
    form = FORMS[0]
    gpu = emulator.Gpu("A100")
    kernel = gpu.load(text("sm_80"))[form.name]
    a = gpu.zeros((1, 8, 32), np.uint32)
    with pytest.raises(emulator.Fault) as fault:
        kernel(1, 16, a, a, a, gpu.empty((1, 8, 32), np.uint32))
    assert fault.value.kind == "divergent_collective"
