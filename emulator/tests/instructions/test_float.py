"""f32 and f64 arithmetic against exact fractions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from emulator.tests.instructions import exact
from emulator.tests.instructions.exact import F32, F64, Value
from emulator.tests.instructions.ptx_template import Case, Sheet, dtype_of

SHEET = Sheet()
NAN = {"f32": 0x7FFFFFFF, "f64": 0xFFF8000000000000}
FORMAT = {"f32": F32, "f64": F64}
ROUNDINGS = ["rn", "rz", "rm", "rp"]


def fma(a: Value, b: Value, c: Value, mode: str) -> Value:
    """a · b + c."""
    return exact.add(exact.multiply(a, b), c, mode)


OPERATIONS: dict[str, tuple[int, Callable[..., Value]]] = {
    "add": (2, lambda a, b, mode: exact.add(a, b, mode)),
    "sub": (2, lambda a, b, mode: exact.add(a, exact.negate(b), mode)),
    "mul": (2, lambda a, b, mode: exact.multiply(a, b)),
    "fma": (3, fma),
    "mad": (3, fma),
    "div": (2, lambda a, b, mode: exact.divide(a, b)),
    "rcp": (1, lambda a, mode: exact.divide(exact.decode(1023 << 52, F64), a)),
    "sqrt": (1, lambda a, mode: exact.square_root(a)),
}


def cases() -> list[tuple[str, str, str, bool, bool, Case]]:
    """Operation, type, rounding, .ftz, .sat, and the kernel."""
    found = []
    for name, (sources, _) in OPERATIONS.items():
        for mode in ROUNDINGS:
            for type_name in ("f32", "f64"):
                for ftz, sat in itertools.product([False, True], repeat=2):
                    if (type_name == "f64" and (ftz or sat)) or (sat and name in ("div", "rcp", "sqrt")):
                        continue
                    opcode = f"{name}.{mode}{'.ftz' if ftz else ''}{'.sat' if sat else ''}.{type_name}"
                    text = f"{opcode} {', '.join('dabc'[: sources + 1])}"
                    case = SHEET.add(text, type_name, *[type_name] * sources)
                    found.append((name, type_name, mode, ftz, sat, case))
    return found


CASES = cases()
ADD_PLAIN = [SHEET.add(f"{op}.f32 d, a, b", "f32", "f32", "f32") for op in ("add", "sub", "mul")]
QUICK = [
    SHEET.add(f"div.{form}{ftz}.f32 d, a, b", "f32", "f32", "f32")
    for form in ("approx", "full")
    for ftz in ("", ".ftz")
]
SIGNS = [
    SHEET.add(f"{op}{ftz}.{t} d, a", t, t)
    for op in ("abs", "neg")
    for t, ftz in (("f32", ""), ("f32", ".ftz"), ("f64", ""))
]
EXTREMES = [
    SHEET.add(f"{op}{ftz}{nan}{xor}.f32 d, a, b", "f32", "f32", "f32")
    for op in ("min", "max")
    for ftz in ("", ".ftz")
    for nan in ("", ".NaN")
    for xor in ("", ".xorsign.abs")
] + [SHEET.add(f"{op}.f64 d, a, b", "f64", "f64", "f64") for op in ("min", "max")]
COPYSIGNS = [SHEET.add(f"copysign.{t} d, a, b", t, t, t) for t in ("f32", "f64")]

# ptxas has these for sm_100 only, so that it does not see this sheet.
NEWER = Sheet()
THREE = [
    NEWER.add(f"{op}{nan}{absolute}.f32 d, a, b, c", "f32", "f32", "f32", "f32")
    for op in ("min", "max")
    for nan in ("", ".NaN")
    for absolute in ("", ".abs")
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


def operands(type_name: str, sources: int) -> list[np.ndarray]:
    """Pairs of all interesting numbers; random triples of them and some close to cancellation."""
    form, dtype = FORMAT[type_name], dtype_of(type_name)
    numbers = exact.interesting(form, more=4)
    if sources == 1:
        return [np.array(exact.interesting(form, more=300), dtype)]
    if sources == 2:
        pairs = list(itertools.product(numbers, repeat=2))
        chosen = np.random.default_rng(1).permutation(len(pairs))[:900]
        return [np.array([pairs[k][s] for k in chosen], dtype) for s in range(2)]
    random = np.random.default_rng(2)
    triples = [[numbers[k] for k in random.integers(0, len(numbers), 3)] for _ in range(500)]
    for _ in range(300):
        one = form.bias << form.mantissa_bits
        a, b = (one + int(x) for x in random.integers(0, 4 << form.mantissa_bits, 2))
        product = exact.multiply(exact.decode(a, form), exact.decode(b, form))
        c = exact.encode(product, form, "rn") ^ form.sign
        triples.append([a, b, c + int(random.integers(-1, 2))])
    return [np.array([t[k] for t in triples], dtype) for k in range(3)]


@pytest.mark.parametrize(("name", "type_name", "mode", "ftz", "sat", "case"), CASES, ids=lambda x: str(x))
def test_rounding(name: str, type_name: str, mode: str, ftz: bool, sat: bool, case: Case) -> None:
    """Every rounding mode, subnormals, overflow, signed zeros, NaN."""
    sources, operation = OPERATIONS[name]
    inputs = operands(type_name, sources)
    expect(case, inputs, type_name, lambda *v: operation(*v, mode), mode, ftz, sat)


def expect(
    case: Case,
    inputs: list[np.ndarray],
    type_name: str,
    operation: Callable[..., Value],
    mode: str = "rn",
    ftz: bool = False,
    sat: bool = False,
) -> None:
    """Compares all results with the operation's; f64 NaNs only for being NaN."""
    form = FORMAT[type_name]
    wanted = []
    for row in zip(*inputs, strict=True):
        values = [exact.decode(x, form) for x in row]
        if ftz:
            values = [exact.flush(v, form) for v in values]
        bits = exact.encode(operation(*values), form, mode, nan=NAN[type_name])
        if sat:
            bits = exact.encode(exact.clamp_to_one(exact.decode(bits, form)), form)
        if ftz:
            value = exact.decode(bits, form)
            bits = bits if value.is_nan else exact.encode(exact.flush(value, form), form)
        wanted.append(bits)
    compare(case(*inputs), np.array(wanted, dtype_of(type_name)), inputs, type_name)


def compare(got: np.ndarray, wanted: np.ndarray, inputs: list[np.ndarray], type_name: str) -> None:
    """Names the first difference."""
    same = got == wanted
    if type_name == "f64":
        same |= exact.is_nan(got, F64) & exact.is_nan(wanted, F64)
    if not same.all():
        k = int(np.argmin(same))
        raise AssertionError(
            f"{[hex(x[k]) for x in inputs]}: got {got[k]:#x}, want {wanted[k]:#x}; {(~same).sum()} wrong"
        )


@pytest.mark.parametrize("case", ADD_PLAIN, ids=str)
def test_default_rounding(case: Case) -> None:
    """Without a rounding it is to nearest even."""
    operation = OPERATIONS[case.text[:3]][1]
    expect(case, operands("f32", 2), "f32", lambda a, b: operation(a, b, "rn"))


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_quick_division(case: Case) -> None:
    """Within 2 ulp; .approx gives zero for the largest divisors."""
    a_bits, b_bits = operands("f32", 2)
    got = case(a_bits, b_bits)
    approximate, ftz = ".approx" in case.text, ".ftz" in case.text
    for x, y, z in zip(a_bits, b_bits, got, strict=True):
        a, b = exact.decode(x, F32), exact.decode(y, F32)
        if ftz:
            a, b = exact.flush(a, F32), exact.flush(b, F32)
        if approximate and not b.is_nan and not b.is_infinite and abs(b.number) > 2**126:
            b = Value(b.negative, exact.INFINITY)
            if a.is_infinite:
                a = exact.A_NAN
        wanted = exact.divide(a, b)
        bits = exact.encode(wanted, F32, nan=NAN["f32"])
        if ftz and not wanted.is_nan:
            bits = exact.encode(exact.flush(exact.decode(bits, F32), F32), F32)
        assert abs(int(z) - bits) <= 2, (hex(x), hex(y), hex(z), hex(bits))


@pytest.mark.parametrize("case", SIGNS, ids=str)
def test_signs(case: Case) -> None:
    """abs and neg change a bit, and flush before."""
    type_name = case.result
    form = FORMAT[type_name]
    (a,) = operands(type_name, 1)
    subnormal = ((a & a.dtype.type(form.sign - 1)) >> a.dtype.type(form.mantissa_bits)) == 0
    sign = a.dtype.type(form.sign)
    flushed = np.where(subnormal, a & sign, a) if ".ftz" in case.text else a
    wanted = flushed & ~sign if case.text.startswith("abs") else flushed ^ sign
    compare(case(a), wanted, [a], type_name)


def extreme(values: list[Value], largest: bool, nan_wins: bool) -> Value:
    """PTX's min and max: NaN loses unless .NaN; −0 < +0."""
    numbers = [v for v in values if not v.is_nan]
    if not numbers or (nan_wins and len(numbers) < len(values)):
        return exact.A_NAN

    def key(v: Value) -> tuple[float, int]:
        magnitude = float("inf") if v.is_infinite else v.number if not v.negative else -v.number
        return (-magnitude if v.negative else magnitude, 0 if v.negative else 1)

    return max(numbers, key=key) if largest else min(numbers, key=key)


@pytest.mark.parametrize("case", EXTREMES, ids=str)
def test_minimum_and_maximum(case: Case) -> None:
    """NaN, signed zeros, .xorsign.abs."""
    type_name = case.result
    form = FORMAT[type_name]
    xor = "xorsign" in case.text
    largest, nan_wins = case.text.startswith("max"), ".NaN" in case.text

    def operation(a: Value, b: Value) -> Value:
        if not xor:
            return extreme([a, b], largest, nan_wins)
        value = extreme([Value(False, a.magnitude), Value(False, b.magnitude)], largest, nan_wins)
        return value if value.is_nan else Value(signs[0] != signs[1], value.magnitude)

    inputs = operands(type_name, 2)
    if not xor:
        expect(case, inputs, type_name, operation, ftz=".ftz" in case.text)
        return
    got, wanted = case(*inputs), []
    for x, y in zip(*inputs, strict=True):
        signs = [bool(int(v) & form.sign) for v in (x, y)]
        values = [exact.decode(v, form) for v in (x, y)]
        if ".ftz" in case.text:
            values = [exact.flush(v, form) for v in values]
        wanted.append(exact.encode(operation(*values), form, nan=NAN[type_name]))
    compare(got, np.array(wanted, got.dtype), inputs, type_name)


@pytest.mark.parametrize("case", THREE, ids=str)
def test_three_sources(case: Case) -> None:
    """min and max of three."""

    def operation(*values: Value) -> Value:
        if ".abs" in case.text:
            values = tuple(Value(False, v.magnitude) for v in values)
        return extreme(list(values), case.text.startswith("max"), ".NaN" in case.text)

    expect(case, operands("f32", 3), "f32", operation)


@pytest.mark.parametrize("case", COPYSIGNS, ids=str)
def test_copysign(case: Case) -> None:
    """The sign of a, the rest of b."""
    a, b = operands(case.result, 2)
    sign = a.dtype.type(FORMAT[case.result].sign)
    compare(case(a, b), (b & ~sign) | (a & sign), [a, b], case.result)
