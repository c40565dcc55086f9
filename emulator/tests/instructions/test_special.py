"""ex2 lg2 sin cos tanh rcp sqrt rsqrt: within the error that PTX allows, and exact at special values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emulator.tests.instructions import exact
from emulator.tests.instructions.exact import BF16, F16, F32, F64, Format
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of, dtype_of

SHEET = Sheet()
FORMAT = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
INF = np.inf


def function_of_longdouble(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def apply(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(x.astype(np.longdouble))

    return apply


FUNCTIONS = {
    "ex2": function_of_longdouble(np.exp2),
    "lg2": function_of_longdouble(np.log2),
    "sin": function_of_longdouble(np.sin),
    "cos": function_of_longdouble(np.cos),
    "tanh": function_of_longdouble(np.tanh),
    "rcp": function_of_longdouble(lambda x: 1 / x),
    "sqrt": function_of_longdouble(np.sqrt),
    "rsqrt": function_of_longdouble(lambda x: 1 / np.sqrt(x)),
}
FLOATS = [
    (name, ftz, SHEET.add(f"{name}.approx{ftz}.f32 d, a", "f32", "f32"))
    for name in FUNCTIONS
    for ftz in ("", ".ftz")
    if name != "tanh" or not ftz
]
HALVES = [
    (
        name,
        type_name,
        packed,
        SHEET.add(f"{name}.approx{ftz}.{type_name}{'x2' if packed else ''} d, a", register, register),
    )
    for name, type_name, ftz in (
        ("ex2", "f16", ""),
        ("ex2", "bf16", ".ftz"),
        ("tanh", "f16", ""),
        ("tanh", "bf16", ""),
    )
    for packed, register in ((False, "b16"), (True, "b32"))
]
DOUBLES = [
    ("rcp", 2**-20, SHEET.add("rcp.approx.ftz.f64 d, a", "f64", "f64")),
    ("rsqrt", 2**-20, SHEET.add("rsqrt.approx.ftz.f64 d, a", "f64", "f64")),
    ("rsqrt", 2**-51, SHEET.add("rsqrt.approx.f64 d, a", "f64", "f64")),
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


def numbers(type_name: str, bits: np.ndarray) -> np.ndarray:
    """As float64."""
    with np.errstate(invalid="ignore"):
        if type_name == "bf16":
            return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return bits.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[type_name]).astype(np.float64)


def flush(bits: np.ndarray, form: Format) -> np.ndarray:
    """Subnormals become zeros."""
    sign = bits.dtype.type(form.sign)
    return np.where(bits & bits.dtype.type(form.infinity) == 0, bits & sign, bits)


def last_place(x: np.ndarray, form: Format) -> np.ndarray:
    """The last place of the format at x."""
    with np.errstate(divide="ignore"):
        exponent = np.frexp(np.abs(x.astype(np.longdouble)))[1] - 1
    exponent = np.where(x == 0, 1 - form.bias, np.maximum(exponent, 1 - form.bias))
    return np.exp2((exponent - form.mantissa_bits).astype(np.longdouble))


def expect_rounded(name: str, got: np.ndarray, sources: np.ndarray, type_name: str, ftz: bool) -> None:
    """Half an ulp and a little, of the function in extended precision; special values exact."""
    form = FORMAT[type_name]
    x = numbers(type_name, flush(sources, form) if ftz else sources)
    wanted = FUNCTIONS[name](x)
    result = numbers(type_name, got)
    largest = float(exact.decode(form.largest, form).number)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted))
    nan = 0x7FFF if form in (F16, BF16) else 0x7FFFFFFF
    assert (got[np.isnan(result)] == nan).all()
    finite = np.isfinite(wanted) & (np.abs(wanted) <= largest)
    if ftz:
        smallest = float(2.0 ** (1 - form.bias))
        tiny = finite & (np.abs(wanted) < smallest * (1 - 2.0**-20))
        assert (result[tiny] == 0).all()
        finite &= np.abs(wanted) >= smallest
    error = np.abs(result[finite].astype(np.longdouble) - wanted[finite])
    assert (error <= 0.5001 * last_place(wanted[finite], form)).all()
    infinite = np.isinf(wanted) | (np.isfinite(wanted) & (np.abs(wanted) > largest * (1 + 2.0**-8)))
    np.testing.assert_array_equal(result[infinite], np.sign(wanted[infinite]) * INF)
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(result[zero]), np.signbit(wanted[zero]))


@pytest.mark.parametrize(("name", "ftz", "case"), FLOATS, ids=lambda x: str(x))
def test_floats(name: str, ftz: str, case: Case) -> None:
    """Edge values, and numbers over the range where the function is neither 0 nor infinite."""
    random = np.random.default_rng(8)
    usual = np.concatenate([random.uniform(-130, 130, 2000), random.uniform(-8, 8, 2000), np.arange(-150, 130)])
    bits = np.concatenate(
        [usual.astype(np.float32).view(np.uint32), np.array(exact.interesting(F32, more=500), np.uint32)]
    )
    if name in ("sin", "cos"):
        # Beyond that their argument's last place is more than a period.
        bits = bits[~(np.abs(bits.view(np.float32)) > 2.0**24) | ~np.isfinite(bits.view(np.float32))]
    expect_rounded(name, case(bits), bits, "f32", bool(ftz))


@pytest.mark.parametrize(("name", "type_name", "packed", "case"), HALVES, ids=lambda x: str(x))
def test_halves(name: str, type_name: str, packed: bool, case: Case) -> None:
    """All 65536."""
    every = np.arange(1 << 16, dtype=np.uint16)
    ftz = ".ftz" in case.text
    if not packed:
        expect_rounded(name, case(every), every, type_name, ftz)
        return
    got = case(every.astype(np.uint32) | every[::-1].astype(np.uint32) << 16)
    expect_rounded(name, (got & 0xFFFF).astype(np.uint16), every, type_name, ftz)
    expect_rounded(name, (got >> 16).astype(np.uint16), every[::-1].copy(), type_name, ftz)


@pytest.mark.parametrize(("name", "error", "case"), DOUBLES, ids=lambda x: str(x))
def test_doubles(name: str, error: float, case: Case) -> None:
    """A relative error; with .ftz only the upper half of the bits is there."""
    bits = np.array(exact.interesting(F64, more=500), np.uint64)
    got, ftz = case(bits), ".ftz" in case.text
    x = numbers("f64", flush(bits, F64) if ftz else bits)
    wanted = FUNCTIONS[name](x)
    result = numbers("f64", got)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted))
    usual = np.isfinite(wanted) & (np.abs(wanted) >= 2.0**-1022) & (np.abs(wanted) <= np.finfo(np.float64).max)
    assert (np.abs(result[usual] - wanted[usual]) <= error * np.abs(wanted[usual])).all()
    infinite = np.isinf(wanted)
    np.testing.assert_array_equal(result[infinite], wanted[infinite])
    if ftz:
        assert (got & np.uint64(0xFFFFFFFF) == 0).all()


def test_registers_have_the_formats_width() -> None:
    """The helper that the cases rely on."""
    assert bits_of("f64") == 64
    assert dtype_of("bf16") is np.uint16
