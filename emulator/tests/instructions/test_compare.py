"""setp, set, selp, slct, testp against their definitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from emulator.tests.instructions import exact, integers
from emulator.tests.instructions.exact import BF16, F16, F32, F64, Format, Value
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of, dtype_of

SHEET = Sheet()
FORMAT = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
ORDERED: dict[str, Callable[[object, object], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
FLOAT_OPS = [*ORDERED, *(f"{op}u" for op in ORDERED), "num", "nan"]
COMBINE: dict[str, Callable[[bool, bool], bool]] = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
}


def number(value: Value) -> object:
    """Something that Python compares."""
    if value.is_infinite:
        return float("-inf" if value.negative else "inf")
    return value.number


def float_compare(op: str, a: Value, b: Value) -> bool:
    """PTX's comparisons; those ending in u are true of a NaN."""
    unordered = a.is_nan or b.is_nan
    if op in ("num", "nan"):
        return unordered == (op == "nan")
    if unordered:
        return op.endswith("u")
    return ORDERED[op.removesuffix("u")](number(a), number(b))


def integer_ops(type_name: str) -> list[str]:
    return ["eq", "ne"] if type_name[0] == "b" else [*ORDERED, *(UNSIGNED if type_name[0] == "u" else [])]


INTEGERS = [
    (op, SHEET.add(f"setp.{op}.{t} d, a, b", "pred", t, t))
    for t in (f"{s}{w}" for s in "bus" for w in (16, 32, 64))
    for op in integer_ops(t)
]
FLOATS = [
    (op, ftz, t, SHEET.add(f"setp.{op}{ftz}.{t} d, a, b", "pred", f"b{bits_of(t)}", f"b{bits_of(t)}"))
    for t in FORMAT
    for ftz in (["", ".ftz"] if t in ("f16", "f32") else [""])
    for op in FLOAT_OPS
]
# Both predicates, combined with a third that may be negated: p + 2q.
BOTH = "; selp.b32 %w, 1, 0, %p; selp.b32 %w1, 2, 0, %q; add.u32 d, %w, %w1"
COMBINED = [
    (combine, bang, SHEET.add(f"setp.lt.{combine}.f32 %p|%q, a, b, {bang}c{BOTH}", "b32", "b32", "b32", "pred"))
    for combine in COMBINE
    for bang in ("", "!")
]
PAIR = SHEET.add(f"setp.le.s32 %p|%q, a, b{BOTH}", "b32", "s32", "s32")
SINK = SHEET.add("setp.le.s32 _|d, a, b", "pred", "s32", "s32")
PACKED = [
    (t, op, combine, SHEET.add(text, "b32", "b32", "b32", "pred"))
    for t in ("f16", "bf16")
    for op in ("eq", "ltu", "nan")
    for combine, text in (
        ("", f"setp.{op}.{t}x2 %p|%q, a, b{BOTH}"),
        ("xor", f"setp.{op}.xor.{t}x2 %p|%q, a, b, !c{BOTH}"),
    )
]
SETS = [
    (SHEET.add(f"set.{op}.{to}.{t} d, a, b", f"b{bits_of(to)}", f"b{bits_of(t)}", f"b{bits_of(t)}"), op, to, t)
    for to, t, ops in [
        *((to, t, ("ge", "ne")) for to in ("u32", "s32", "f32") for t in ("s32", "u64", "u16")),
        *((to, t, ("ge", "neu", "nan")) for to in ("u32", "f32") for t in ("f32", "f64")),
        *((to, "f16", ("lt", "equ")) for to in ("u16", "s16", "u32", "s32", "f16")),
        *((to, "bf16", ("lt", "equ")) for to in ("u16", "u32", "bf16")),
        ("f16", "f32", ("gt",)),
        ("bf16", "f32", ("gt",)),
    ]
    for op in ops
]
SET_COMBINED = SHEET.add("set.gt.and.u32.f32 d, a, b, !c", "b32", "b32", "b32", "pred")
SETS_PACKED = [
    (SHEET.add(f"set.{op}.{to}.{t}x2 d, a, b", "b32", "b32", "b32"), op, to, t)
    for t, to in (("f16", "f16x2"), ("f16", "u32"), ("bf16", "bf16x2"), ("bf16", "u32"))
    for op in ("ge", "neu")
]
SELP = [SHEET.add(f"selp.{t} d, a, b, c", t, t, t, "pred") for t in ("b16", "u16", "b32", "s32", "f32", "b64", "f64")]
SLCT = [
    (ftz, SHEET.add(f"slct{ftz}.{t}.{by} d, a, b, c", t, t, t, by))
    for t in ("b16", "u32", "f64")
    for by, ftz in (("s32", ""), ("f32", ""), ("f32", ".ftz"))
]
TESTP = [
    (op, SHEET.add(f"testp.{op}.{t} d, a", "pred", t))
    for op in ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    for t in ("f32", "f64")
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


@pytest.mark.parametrize(("op", "case"), INTEGERS, ids=str)
def test_integers(op: str, case: Case) -> None:
    """Signed, unsigned and untyped."""
    width = bits_of(case.sources[0])
    rows = integers.combinations(integers.interesting(width), integers.interesting(width))
    integers.check(case, rows, lambda a, b: int(ORDERED[UNSIGNED.get(op, op)](a, b)))


def float_pairs(type_name: str, seed: int = 0) -> list[tuple[int, ...]]:
    numbers = exact.interesting(FORMAT[type_name], more=3)
    return integers.combinations(numbers, numbers, most=700, seed=seed) + [(x, x) for x in numbers]


def decoded(form: Format, ftz: bool, *sources: int) -> list[Value]:
    values = [exact.decode(x, form) for x in sources]
    return [exact.flush(v, form) for v in values] if ftz else values


@pytest.mark.parametrize(("op", "ftz", "type_name", "case"), FLOATS, ids=str)
def test_floats(op: str, ftz: str, type_name: str, case: Case) -> None:
    """NaN, signed zeros, infinities, subnormals."""
    form = FORMAT[type_name]
    integers.check(case, float_pairs(type_name), lambda a, b: int(float_compare(op, *decoded(form, bool(ftz), a, b))))


@pytest.mark.parametrize(("combine", "bang", "case"), COMBINED, ids=str)
def test_combined(combine: str, bang: str, case: Case) -> None:
    """p and q are the comparison and its opposite, each combined with c."""

    def wanted(a: int, b: int, c: int) -> int:
        first, c = float_compare("lt", *decoded(F32, False, a, b)), bool(c) != bool(bang)
        return COMBINE[combine](first, c) + 2 * COMBINE[combine](not first, c)

    integers.check(case, [(*row, k % 2) for k, row in enumerate(float_pairs("f32"))], wanted)


def test_two_predicates() -> None:
    """Without a combination q is the opposite of p; either can be left out."""
    rows = integers.combinations(integers.interesting(32), integers.interesting(32))
    integers.check(PAIR, rows, lambda a, b: 1 if a <= b else 2)
    integers.check(SINK, rows, lambda a, b: int(a > b))


def packed_rows(type_name: str) -> list[tuple[int, int]]:
    table = float_pairs(type_name)
    other = [table[(5 * k + 2) % len(table)] for k in range(len(table))]
    return [(a | c << 16, b | d << 16) for (a, b), (c, d) in zip(table, other, strict=True)]


@pytest.mark.parametrize(("type_name", "op", "combine", "case"), PACKED, ids=str)
def test_packed(type_name: str, op: str, combine: str, case: Case) -> None:
    """p is about the low halves, q about the high ones."""
    form = FORMAT[type_name]

    def wanted(a: int, b: int, c: int) -> int:
        low = float_compare(op, *decoded(form, False, a & 0xFFFF, b & 0xFFFF))
        high = float_compare(op, *decoded(form, False, a >> 16, b >> 16))
        if combine:
            low, high = low != (not c), high != (not c)
        return low + 2 * high

    integers.check(case, [(*row, k % 2) for k, row in enumerate(packed_rows(type_name))], wanted)


ONE = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


@pytest.mark.parametrize(("case", "op", "to", "type_name"), SETS, ids=lambda x: str(x))
def test_set(case: Case, op: str, to: str, type_name: str) -> None:
    """All ones, or one."""
    true = ONE.get(to, -1)
    if type_name in FORMAT:
        form = FORMAT[type_name]
        rows = float_pairs(type_name)
        integers.check(case, rows, lambda a, b: true * float_compare(op, *decoded(form, False, a, b)))
    else:
        width = bits_of(type_name)
        rows = integers.combinations(integers.interesting(width), integers.interesting(width), most=400)
        integers.check(
            case,
            rows,
            lambda a, b: true * ORDERED[op](integers.value(a, type_name), integers.value(b, type_name)),
        )


def test_set_combined() -> None:
    """With a negated predicate."""
    integers.check(
        SET_COMBINED,
        [(*row, k % 2) for k, row in enumerate(float_pairs("f32"))],
        lambda a, b, c: -1 * (float_compare("gt", *decoded(F32, False, a, b)) and not c),
    )


@pytest.mark.parametrize(("case", "op", "to", "type_name"), SETS_PACKED, ids=lambda x: str(x))
def test_set_packed(case: Case, op: str, to: str, type_name: str) -> None:
    """Each half of the result is about a half of the sources."""
    form, true = FORMAT[type_name], ONE[type_name] if to.endswith("x2") else 0xFFFF

    def wanted(a: int, b: int) -> int:
        low = float_compare(op, *decoded(form, False, a & 0xFFFF, b & 0xFFFF))
        high = float_compare(op, *decoded(form, False, a >> 16, b >> 16))
        return low * true | high * true << 16

    integers.check(case, packed_rows(type_name), wanted)


@pytest.mark.parametrize("case", SELP, ids=str)
def test_selp(case: Case) -> None:
    """By a predicate."""
    width = bits_of(case.result)
    pool = integers.interesting(width)
    a = np.array(pool * 2, dtype_of(case.result))
    b, c = a[::-1].copy(), np.arange(len(a)) * 5 % 3 == 0
    np.testing.assert_array_equal(case(a, b, c.astype(np.uint32)), np.where(c, a, b))


@pytest.mark.parametrize(("ftz", "case"), SLCT, ids=str)
def test_slct(ftz: str, case: Case) -> None:
    """By a sign: −0 is not negative, NaN counts as negative."""
    by = case.sources[2]
    pool = exact.interesting(F32) if by == "f32" else integers.interesting(32)
    c = np.array(pool, np.uint32)
    a = np.arange(len(c)).astype(dtype_of(case.result))
    b = a + a.dtype.type(1000)
    if by == "f32":
        values = [decoded(F32, bool(ftz), x)[0] for x in pool]
        positive = np.array([not v.is_nan and number(v) >= 0 for v in values])
    else:
        positive = c.view(np.int32) >= 0
    np.testing.assert_array_equal(case(a, b, c), np.where(positive, a, b))


@pytest.mark.parametrize(("op", "case"), TESTP, ids=str)
def test_testp(op: str, case: Case) -> None:
    """The kinds of numbers; zeros count as normal."""
    form = FORMAT[case.sources[0]]

    def wanted(bits: int) -> bool:
        v = exact.decode(bits, form)
        subnormal = not v.is_nan and not v.is_infinite and not v.is_zero and exact.flush(v, form).is_zero
        return {
            "finite": not v.is_nan and not v.is_infinite,
            "infinite": v.is_infinite,
            "number": not v.is_nan,
            "notanumber": v.is_nan,
            "normal": not v.is_nan and not v.is_infinite and not subnormal,
            "subnormal": subnormal,
        }[op]

    a = np.array(exact.interesting(form, more=50), dtype_of(case.sources[0]))
    np.testing.assert_array_equal(case(a), [int(wanted(int(x))) for x in a])


def test_all_comparisons_are_tried() -> None:
    """The pairs hold a NaN, equal numbers, and zeros of both signs."""
    pairs = list(itertools.chain(float_pairs("f32")))
    assert any(a == b for a, b in pairs)
    assert any(exact.decode(a, F32).is_nan and not exact.decode(b, F32).is_nan for a, b in pairs)
