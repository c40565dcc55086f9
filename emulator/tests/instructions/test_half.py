"""Arithmetic of f16 and bf16, single and packed, against exact fractions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from emulator.tests.instructions import exact
from emulator.tests.instructions.exact import BF16, F16, Format, Value
from emulator.tests.instructions.ptx_template import Case, Sheet

SHEET = Sheet()
NAN = 0x7FFF
FORMAT = {"f16": F16, "bf16": BF16}
Operation = Callable[..., Value]


def fma(a: Value, b: Value, c: Value) -> Value:
    """a · b + c."""
    return exact.add(exact.multiply(a, b), c)


def extreme(largest: bool, nan_wins: bool) -> Operation:
    """PTX's min and max: NaN loses unless .NaN; −0 < +0."""

    def operation(*values: Value) -> Value:
        numbers = [v for v in values if not v.is_nan]
        if not numbers or (nan_wins and len(numbers) < len(values)):
            return exact.A_NAN

        def key(v: Value) -> tuple[float, int]:
            magnitude = float("inf") if v.is_infinite else float(abs(v.number))
            return (-magnitude if v.negative else magnitude, 0 if v.negative else 1)

        return max(numbers, key=key) if largest else min(numbers, key=key)

    return operation


def xor_sign(operation: Operation) -> Operation:
    """.xorsign.abs of two sources."""

    def signed(a: Value, b: Value) -> Value:
        result = operation(Value(False, a.magnitude), Value(False, b.magnitude))
        return result if result.is_nan else Value(a.negative != b.negative, result.magnitude)

    return signed


OPERATIONS: dict[str, Operation] = {
    "add": exact.add,
    "sub": lambda a, b: exact.add(a, exact.negate(b)),
    "mul": exact.multiply,
    "fma.rn": fma,
    **{
        f"{name}{nan}{xor}": (xor_sign if xor else lambda f: f)(extreme(name == "max", bool(nan)))
        for name in ("min", "max")
        for nan in ("", ".NaN")
        for xor in ("", ".xorsign.abs")
    },
}


def cases() -> list[tuple[str, str, str, bool, Case]]:
    """Operation, its flags, the type of one value, whether two are packed, and the kernel."""
    found = []
    for name, type_name, packed in itertools.product(OPERATIONS, FORMAT, [False, True]):
        flags = [""]
        if type_name == "f16":
            flags.append(".ftz")
            if name in ("add", "sub", "mul", "fma.rn"):
                flags += [".sat", ".ftz.sat"]
        if name == "fma.rn":
            flags.append(".relu")
        for flag in flags:
            base, _, rest = name.partition(".")
            opcode = f"{name}{flag}" if name == "fma.rn" else f"{base}{flag}{'.' + rest if rest else ''}"
            form = f"{type_name}x2" if packed else type_name
            register = "b32" if packed else "b16"
            sources = "abc"[: 3 if name == "fma.rn" else 2]
            case = SHEET.add(f"{opcode}.{form} d, {', '.join(sources)}", register, *[register] * len(sources))
            found.append((name, flag, type_name, packed, case))
    return found


CASES = cases()
SIGNS = [
    (ftz, type_name, SHEET.add(f"{op}{ftz}.{type_name}{x2} d, a", register, register))
    for op in ("abs", "neg")
    for type_name, ftz in (("f16", ""), ("f16", ".ftz"), ("bf16", ""))
    for x2, register in (("", "b16"), ("x2", "b32"))
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


def expected(name: str, flag: str, form: Format, sources: tuple[int, ...]) -> int:
    """The exact result, rounded once, then flushed and clamped."""
    values = [exact.decode(x, form) for x in sources]
    if ".ftz" in flag:
        values = [exact.flush(v, form) for v in values]
    result = exact.decode(exact.encode(OPERATIONS[name](*values), form, nan=NAN), form)
    if ".sat" in flag:
        result = exact.clamp_to_one(result)
    if ".relu" in flag:
        result = exact.relu(result)
    if ".ftz" in flag:
        result = exact.flush(result, form)
    return exact.encode(result, form, nan=NAN)


def rows(form: Format, sources: int) -> list[tuple[int, ...]]:
    """Combinations of interesting numbers, random bits, and sums that nearly cancel or are nearly ties."""
    random = np.random.default_rng(5)
    numbers = exact.interesting(form, more=6)
    every = list(itertools.product(numbers, repeat=2)) if sources == 2 else []
    found = [every[k] for k in random.permutation(len(every))[:700]]
    while len(found) < 1100:
        found.append(tuple(numbers[k] for k in random.integers(0, len(numbers), sources)))
    found += [tuple(int(x) for x in random.integers(0, 1 << 16, sources)) for _ in range(300)]
    if sources == 3:
        for _ in range(600):
            a, b = (int(x) for x in random.integers(0, form.infinity, 2))
            product = exact.multiply(exact.decode(a, form), exact.decode(b, form))
            near = exact.encode(product, form, ["rn", "rz", "rp"][int(random.integers(0, 3))])
            near += int(random.integers(0, 4)) * (1 << form.mantissa_bits) - (1 << form.mantissa_bits)
            found.append((a, b, (near & 0x7FFF) ^ form.sign))
            # A product far below the other summand's last place, that breaks its ties.
            found.append((a, b, int(random.integers(0, 1 << 16))))
    return found


@pytest.mark.parametrize(("name", "flag", "type_name", "packed", "case"), CASES, ids=lambda x: str(x))
def test_values(name: str, flag: str, type_name: str, packed: bool, case: Case) -> None:
    """Rounded once, whatever the operation."""
    form = FORMAT[type_name]
    table = rows(form, len(case.sources))
    if packed:
        table = table[::3] + table[1::7]
        other = [table[(7 * k + 3) % len(table)] for k in range(len(table))]
        columns = [
            [x | y << 16 for x, y in zip(p, q, strict=True)]
            for p, q in zip(zip(*table, strict=True), zip(*other, strict=True), strict=True)
        ]
    else:
        other, columns = [], [list(column) for column in zip(*table, strict=True)]
    got = case(*(np.array(c) for c in columns))
    for k, sources in enumerate(table):
        wanted = expected(name, flag, form, sources)
        if packed:
            wanted |= expected(name, flag, form, other[k]) << 16
        assert int(got[k]) == wanted, f"{[hex(c[k]) for c in columns]}: got {got[k]:#x}, want {wanted:#x}"


@pytest.mark.parametrize(("ftz", "type_name", "case"), SIGNS, ids=lambda x: str(x))
def test_signs(ftz: str, type_name: str, case: Case) -> None:
    """All 65536 values; of two, in both places."""
    form, every = FORMAT[type_name], np.arange(1 << 16, dtype=np.uint32)
    flushed = np.where((every & form.infinity) == 0, every & 0x8000, every) if ftz else every
    wanted = flushed & 0x7FFF if case.text.startswith("abs") else flushed ^ 0x8000
    if case.result == "b32":
        every, wanted = every | every[::-1] << 16, wanted | wanted[::-1] << 16
    np.testing.assert_array_equal(case(every), wanted)
