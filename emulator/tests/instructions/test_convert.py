"""cvt between all types, against exact fractions and Python's integers."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from emulator.tests.instructions import exact, integers
from emulator.tests.instructions.exact import BF16, E4M3, E5M2, F16, F32, F64, TF32, Format, Value
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of, dtype_of

SHEET = Sheet()
FORMAT = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64, "tf32": TF32, "e4m3": E4M3, "e5m2": E5M2}
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0xFFF8000000000000, "e4m3": 0x7F, "e5m2": 0x7F}
INTEGERS = [f"{s}{w}" for s in "us" for w in (8, 16, 32, 64)]
FLOATS = ["f16", "bf16", "f32", "f64"]
ROUNDINGS = ["rn", "rz", "rm", "rp"]
INTEGRAL = [f"{mode}i" for mode in ROUNDINGS]


def carrier(type_name: str) -> str:
    """The register that a test keeps a type in."""
    return f"b{max(16, bits_of(type_name))}"


def contains(outer: str, inner: str) -> bool:
    """Whether each number of one integer type is one of the other."""
    (low, high), (inner_low, inner_high) = integers.limits(outer), integers.limits(inner)
    return low <= inner_low and inner_high <= high


def float_numbers(type_name: str) -> list[int]:
    """Edge values of a format, and numbers around the edges of the integer types and of narrower formats."""
    form = FORMAT[type_name]
    found = exact.interesting(form, more=40)
    near = []
    for width in (7, 8, 15, 16, 31, 32, 63, 64):
        near += [Fraction(2) ** width + d for d in (-2, -1, Fraction(-1, 2), 0, Fraction(1, 2), 1)]
    near += [Fraction(k, 4) for k in range(14)] + [Fraction(1, 2**50), Fraction(49, 100)]
    for other in FORMAT.values():
        largest = exact.decode(other.largest, other).number
        ulp = largest - exact.decode(other.largest - 1, other).number
        near += [largest, largest + ulp / 2, largest + ulp * Fraction(49, 100), largest + ulp]
        tiny = exact.decode(1, other).number
        near += [tiny, tiny / 2, tiny / 2 * (1 + Fraction(1, 1000)), tiny * Fraction(3, 2), tiny * Fraction(1, 4)]
        one = Fraction(1, 2**other.mantissa_bits)
        near += [1 + one / 2, 1 + one * Fraction(3, 2), 1 + one / 2 * (1 + Fraction(1, 2**9))]
    for x, mode in itertools.product(near, ("rz", "rp")):
        bits = exact.encode(Value(False, x), form, mode, nan=NAN[type_name])
        found += [bits, bits | form.sign]
    return sorted(set(found))


def compare(case: Case, sources: list[tuple[int, ...]], wanted: list[int]) -> None:
    """Names the first difference."""
    columns = [
        np.array(column, dtype_of(t)) for column, t in zip(zip(*sources, strict=True), case.sources, strict=True)
    ]
    got = case(*columns)
    for row, result, expected in zip(sources, got, wanted, strict=True):
        assert int(result) == expected, f"{case.text} of {[hex(x) for x in row]}: got {result:#x}, want {expected:#x}"


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


# Integers to integers. The source may be in a wider register, and so may the destination.
BETWEEN_INTEGERS = [
    (to, source, sat, to_register, from_register, SHEET.add(f"cvt{sat}.{to}.{source} d, a", to_register, from_register))
    for to, source in itertools.product(INTEGERS, repeat=2)
    # .sat is for what may need it.
    for sat in (["", ".sat"] if not contains(to, source) else [""])
    for to_register, from_register in [
        (carrier(to), carrier(source)),
        *([("b64", "b64")] if bits_of(to) < 64 and bits_of(source) < 64 and sat == "" else []),
        *([("b32", "b32")] if bits_of(to) < 32 and bits_of(source) < 32 else []),
    ]
]


@pytest.mark.parametrize(("to", "source", "sat", "to_register", "from_register", "case"), BETWEEN_INTEGERS, ids=str)
def test_integers(to: str, source: str, sat: str, to_register: str, from_register: str, case: Case) -> None:
    """Truncated or clamped; sign- or zero-extended to the register."""
    rows = integers.interesting(bits_of(from_register), more=12)
    wanted = []
    for x in rows:
        number = integers.value(x, source)
        number = integers.clamp(number, to) if sat else integers.value(number, to)
        wanted.append(number & ((1 << bits_of(to_register)) - 1))
    compare(case, [(x,) for x in rows], wanted)


TO_INTEGERS = [
    (to, source, mode, ftz, SHEET.add(f"cvt.{mode}{ftz}.{to}.{source} d, a", carrier(to), carrier(source)))
    for to, source, mode in itertools.product(INTEGERS, FLOATS, INTEGRAL)
    for ftz in (["", ".ftz"] if source == "f32" else [""])
    if source != "bf16" or bits_of(to) > 8
]


def to_integer(x: Value, to: str, source: str, mode: str) -> int:
    """Rounded and clamped; NaN is 0, or the highest bit where 64 bits are involved."""
    if x.is_nan:
        return integers.value(1 << (bits_of(to) - 1), to) if source == "f64" or bits_of(to) == 64 else 0
    if x.is_infinite:
        return integers.limits(to)[0 if x.negative else 1]
    rounded = exact.round_to_integer(abs(x.number), mode, x.negative)
    return integers.clamp(-rounded if x.negative else rounded, to)


@pytest.mark.parametrize(("to", "source", "mode", "ftz", "case"), TO_INTEGERS, ids=str)
def test_float_to_integer(to: str, source: str, mode: str, ftz: str, case: Case) -> None:
    """All roundings; out of range, infinity, NaN."""
    rows = float_numbers(source)
    wanted = []
    for x in rows:
        number = exact.decode(x, FORMAT[source])
        number = exact.flush(number, F32) if ftz else number
        wanted.append(to_integer(number, to, source, mode[:2]) & ((1 << bits_of(carrier(to))) - 1))
    compare(case, [(x,) for x in rows], wanted)


FROM_INTEGERS = [
    (to, source, mode, SHEET.add(f"cvt.{mode}.{to}.{source} d, a", carrier(to), carrier(source)))
    for to, source, mode in itertools.product(FLOATS, INTEGERS, ROUNDINGS)
    if to != "bf16" or bits_of(source) > 8
]


@pytest.mark.parametrize(("to", "source", "mode", "case"), FROM_INTEGERS, ids=str)
def test_integer_to_float(to: str, source: str, mode: str, case: Case) -> None:
    """All roundings, overflow of f16."""
    rows = integers.interesting(bits_of(case.sources[0]), more=60)
    rows += [
        (1 << k) + d for k in range(8, bits_of(source)) for d in (1, (1 << max(k - 11, 0)), (3 << max(k - 25, 0)) + 1)
    ]
    numbers = [integers.value(x, source) for x in rows]
    wanted = [exact.encode(Value(n < 0, Fraction(abs(n))), FORMAT[to], mode) for n in numbers]
    compare(case, [(x,) for x in rows], wanted)


def between_floats() -> list[tuple[str, str, str, str, Case]]:
    """To, from, rounding, flags, kernel."""
    found = []
    for to, source in itertools.product(FLOATS, repeat=2):
        narrows = FORMAT[to].mantissa_bits < FORMAT[source].mantissa_bits or {to, source} == {"f16", "bf16"}
        modes = [""] if to == source or not narrows else ROUNDINGS
        if to == source and to != "bf16":
            modes = ["", *INTEGRAL] if to in ("f32", "f64") else INTEGRAL
        if to == source == "bf16":
            modes = INTEGRAL
        for mode in modes:
            flags = [""]
            if "f32" in (to, source) and "bf16" not in (to, source):
                flags.append(".ftz")
            if (
                to in ("f32", "f16", "f64")
                and source in ("f32", "f16", "f64")
                and (to == source) == (mode in ("", *INTEGRAL))
            ):
                flags.append(".sat")
            if to in ("f16", "bf16") and source == "f32" and mode in ("rn", "rz"):
                flags += [".relu", ".satfinite", ".relu.satfinite"]
            for flag in flags:
                text = f"cvt{'.' if mode else ''}{mode}{flag}.{to}.{source} d, a"
                found.append((to, source, mode, flag, SHEET.add(text, carrier(to), carrier(source))))
    return found


BETWEEN_FLOATS = between_floats()


def converted(bits: int, to: str, source: str, mode: str, flag: str) -> int:
    """cvt of floats."""
    form, x = FORMAT[to], exact.decode(bits, FORMAT[source])
    if ".ftz" in flag and source == "f32":
        x = exact.flush(x, F32)
    if mode in INTEGRAL and not x.is_nan and not x.is_infinite:
        x = Value(x.negative, Fraction(exact.round_to_integer(abs(x.number), mode[:2], x.negative)))
    if ".sat" in flag and ".satfinite" not in flag:
        x = exact.clamp_to_one(x)
    if ".relu" in flag:
        x = exact.relu(x)
    rounding = mode if mode in ROUNDINGS or mode == "rna" else "rn"
    result = exact.encode(x, form, rounding, nan=NAN.get(to, 0), saturate=".satfinite" in flag)
    if ".ftz" in flag and to == "f32" and not x.is_nan:
        result = exact.encode(exact.flush(exact.decode(result, F32), F32), F32)
    return result


@pytest.mark.parametrize(("to", "source", "mode", "flag", "case"), BETWEEN_FLOATS, ids=str)
def test_floats(to: str, source: str, mode: str, flag: str, case: Case) -> None:
    """All roundings, to integral values too; .ftz, .sat, .relu, .satfinite."""
    rows = float_numbers(source)
    compare(case, [(x,) for x in rows], [converted(x, to, source, mode, flag) for x in rows])


WIDENING = [
    (to, source, SHEET.add(f"cvt.{to}.{source} d, a", carrier(to), "b16"))
    for to, source in (("f32", "f16"), ("f32", "bf16"), ("f64", "f16"))
]


@pytest.mark.parametrize(("to", "source", "case"), WIDENING, ids=str)
def test_all_halves(to: str, source: str, case: Case) -> None:
    """All 65536."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        if source == "f16":
            floats = every.view(np.float16).astype(np.float64)
        else:
            floats = (every.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        wanted = floats.astype(np.float32).view(np.uint32) if to == "f32" else floats.view(np.uint64)
    wanted = np.where(np.isnan(floats), wanted.dtype.type(NAN[to]), wanted)
    np.testing.assert_array_equal(case(every), wanted)


MANY = [(to, SHEET.add(f"cvt.rn.{to}.f32 d, a", "b16", "b32")) for to in ("f16", "bf16")]


@pytest.mark.parametrize(("to", "case"), MANY, ids=str)
def test_narrowing_of_ties(to: str, case: Case) -> None:
    """Each finite half-precision number, the middle between it and the next, and what lies just beside the middle."""
    form = FORMAT[to]
    every = np.arange(form.infinity, dtype=np.uint32)
    if to == "f16":
        here = every.astype(np.uint16).view(np.float16).astype(np.float64)
    else:
        here = (every << 16).view(np.float32).astype(np.float64)
    largest = here[-1]
    after = np.append(here[1:], 2 * largest - here[-2])
    middle = ((here + after) / 2).astype(np.float32)
    sources = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])
    even = every + (every & 1)
    wanted = np.concatenate([even, every, every + 1])
    np.testing.assert_array_equal(case(sources.view(np.uint32)), wanted)
    np.testing.assert_array_equal(case((-sources).view(np.uint32)), wanted | form.sign)


PAIRS = [
    (to, mode, flag, SHEET.add(f"cvt.{mode}{flag}.{to}x2.f32 d, a, b", "b32", "b32", "b32"))
    for to, mode in itertools.product(("f16", "bf16"), ("rn", "rz"))
    for flag in ("", ".relu", ".satfinite", ".relu.satfinite")
]


@pytest.mark.parametrize(("to", "mode", "flag", "case"), PAIRS, ids=str)
def test_pairs(to: str, mode: str, flag: str, case: Case) -> None:
    """The first source is the upper half."""
    low = float_numbers("f32")
    rows = list(zip(low[7:] + low[:7], low, strict=True))
    wanted = [converted(a, to, "f32", mode, flag) << 16 | converted(b, to, "f32", mode, flag) for a, b in rows]
    compare(case, rows, wanted)


TO_TF32 = [
    (mode, flag, SHEET.add(f"cvt.{mode}{flag}.tf32.f32 d, a", "b32", "b32"))
    for mode, flag in [
        ("rna", ""),
        ("rna", ".satfinite"),
        *itertools.product(("rn", "rz"), ("", ".relu", ".satfinite", ".relu.satfinite")),
    ]
    # ptxas knows .satfinite here for sm_100 only.
    if mode == "rna" or "satfinite" not in flag
]


@pytest.mark.parametrize(("mode", "flag", "case"), TO_TF32, ids=str)
def test_tf32(mode: str, flag: str, case: Case) -> None:
    """The low 13 bits are zeros."""
    rows = float_numbers("f32")
    wanted = []
    for x in rows:
        bits = converted(x, "tf32", "f32", mode, flag)
        wanted.append(NAN["f32"] if exact.decode(x, F32).is_nan else bits << 13)
    compare(case, [(x,) for x in rows], wanted)


TO_FLOAT8 = [
    (to, relu, SHEET.add(f"cvt.rn.satfinite{relu}.{to}x2.f32 d, a, b", "b16", "b32", "b32"))
    for to in ("e4m3", "e5m2")
    for relu in ("", ".relu")
]
HALVES_TO_FLOAT8 = [
    (to, relu, SHEET.add(f"cvt.rn.satfinite{relu}.{to}x2.f16x2 d, a", "b16", "b32"))
    for to in ("e4m3", "e5m2")
    for relu in ("", ".relu")
]
FROM_FLOAT8 = [
    (source, relu, SHEET.add(f"cvt.rn{relu}.f16x2.{source}x2 d, a", "b32", "b16"))
    for source in ("e4m3", "e5m2")
    for relu in ("", ".relu")
]


@pytest.mark.parametrize(("to", "relu", "case"), TO_FLOAT8, ids=str)
def test_to_float8(to: str, relu: str, case: Case) -> None:
    """Every fp8 number, the middles and their neighbours, and edge values."""
    form = FORMAT[to]
    here = [exact.decode(x, form).number for x in range(form.largest + 1)]
    near = []
    for low, high in itertools.pairwise(here):
        middle = exact.encode(Value(False, (low + high) / 2), F32)
        near += [middle - 1, middle, middle + 1]
    low = sorted({x | s for x in near + float_numbers("f32") for s in (0, F32.sign)})
    rows = list(zip(low[5:] + low[:5], low, strict=True))
    flag = ".satfinite" + relu
    wanted = [converted(a, to, "f32", "rn", flag) << 8 | converted(b, to, "f32", "rn", flag) for a, b in rows]
    compare(case, rows, wanted)


@cache
def float8_of_halves(to: str) -> np.ndarray:
    """Of the halves without a sign."""
    return np.array([converted(x, to, "f16", "rn", ".satfinite") for x in range(1 << 15)], np.uint32)


@pytest.mark.parametrize(("to", "relu", "case"), HALVES_TO_FLOAT8, ids=str)
def test_all_halves_to_float8(to: str, relu: str, case: Case) -> None:
    """All 65536, in both places."""
    positive = float8_of_halves(to)
    negative = np.where(positive == 0x7F, 0x7F, 0 if relu else positive | 0x80).astype(np.uint32)
    one = np.concatenate([positive, negative])
    every = np.arange(1 << 16, dtype=np.uint32)
    np.testing.assert_array_equal(case(every | every[::-1] << 16), one | one[::-1] << 8)


@pytest.mark.parametrize(("source", "relu", "case"), FROM_FLOAT8, ids=str)
def test_all_float8(source: str, relu: str, case: Case) -> None:
    """All 256, in both places."""
    one = np.array([converted(x, "f16", source, "rn", relu) for x in range(256)], np.uint32)
    every = np.arange(1 << 16, dtype=np.uint32)
    np.testing.assert_array_equal(case(every), one[every & 0xFF] | one[every >> 8] << 16)


PACKS = [(to, SHEET.add(f"cvt.pack.sat.{to}.s32 d, a, b", "b32", "b32", "b32")) for to in ("u16", "s16")] + [
    (to, SHEET.add(f"cvt.pack.sat.{to}.s32.b32 d, a, b, c", "b32", "b32", "b32", "b32"))
    for to in ("u8", "s8", "u4", "s4", "u2", "s2")
]


@pytest.mark.parametrize(("to", "case"), PACKS, ids=str)
def test_pack(to: str, case: Case) -> None:
    """Two clamped integers below a third operand."""
    width, is_signed = int(to[1:]), to[0] == "s"
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)

    def wanted(a: int, b: int, c: int = 0) -> int:
        clamped = [max(low, min(high, integers.value(x, "s32"))) & ((1 << width) - 1) for x in (a, b)]
        return clamped[1] | clamped[0] << width | c << 2 * width

    pool = integers.interesting(32, more=10)
    integers.check(case, integers.combinations(*[pool] * len(case.sources)), wanted)


def test_formats() -> None:
    """The reference itself: some known numbers."""

    def number(bits: int, form: Format) -> float:
        return float(exact.decode(bits, form).number)

    assert number(0x7E, E4M3) == 448
    assert number(0x7B, E5M2) == 57344
    assert number(1, E4M3) == 2**-9
    assert exact.encode(exact.decode(0x3DCCCCCD, F32), F16) == 0x2E66
    assert exact.encode(exact.decode(0x3DCCCCCD, F32), BF16) == 0x3DCD
