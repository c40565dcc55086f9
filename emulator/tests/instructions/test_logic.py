"""Logic and shifts, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.tests.instructions.integers import check, combinations, interesting
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of

SHEET = Sheet()
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}
WIDTHS = ["b16", "b32", "b64"]
BINARY = [SHEET.add(f"{op}.{t} d, a, b", t, t, t) for op in OPERATIONS for t in WIDTHS]
PREDICATES = [SHEET.add(f"{op}.pred d, a, b", "pred", "pred", "pred") for op in OPERATIONS]
NOT = [SHEET.add(f"not.{t} d, a", t, t) for t in ["pred", *WIDTHS]]
CNOT = [SHEET.add(f"cnot.{t} d, a", t, t) for t in WIDTHS]
TABLES = [0x00, 0xFF, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0xAA, 0xF0, 0xCC, 0x1D, 0x5B]
LOP3 = [SHEET.add(f"lop3.b32 d, a, b, c, {table:#x}", "b32", "b32", "b32", "b32") for table in TABLES]
LOP3_PREDICATE = [
    (
        table,
        combine,
        SHEET.add(f"lop3.{combine}.b32 %w|d, a, b, c, {table:#x}, e", "pred", "b32", "b32", "b32", "pred"),
        SHEET.add(f"lop3.{combine}.b32 _|d, a, b, c, {table:#x}, e", "pred", "b32", "b32", "b32", "pred"),
    )
    for table in (0x80, 0x96)
    for combine in ("or", "and")
]
SHL = [SHEET.add(f"shl.{t} d, a, b", t, t, "b32") for t in WIDTHS]
SHR = [SHEET.add(f"shr.{s}{w} d, a, b", f"{s}{w}", f"{s}{w}", "b32") for s in "bus" for w in (16, 32, 64)]
SHF = [
    SHEET.add(f"shf.{way}.{mode}.b32 d, a, b, c", "b32", "b32", "b32", "b32")
    for way in "lr"
    for mode in ("clamp", "wrap")
]
AMOUNTS = [0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1 << 31, 0xFFFFFFFF]
BY_CONSTANT = [
    (way, n, SHEET.add(f"{way}.b64 d, a, {n}", "b64", "b64")) for way in ("shl", "shr") for n in (0, 1, 32, 63, 64)
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


@pytest.mark.parametrize("case", BINARY + PREDICATES, ids=str)
def test_binary(case: Case) -> None:
    """and, or, xor."""
    width = bits_of(case.result)
    pools = [[0, 1]] * 2 if width == 1 else [interesting(width, seed=k) for k in range(2)]
    check(case, combinations(*pools), OPERATIONS[case.text.split(".")[0]])


@pytest.mark.parametrize("case", NOT + CNOT, ids=str)
def test_unary(case: Case) -> None:
    """not, cnot."""
    width = bits_of(case.result)
    pool = [0, 1] if width == 1 else interesting(width)
    wanted = (lambda a: int(a == 0)) if case.text.startswith("cnot") else (lambda a: ~a)
    check(case, [(x,) for x in pool], wanted)


def lookup(table: int, a: int, b: int, c: int) -> int:
    """lop3, bit by bit."""
    return sum((table >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | c >> k & 1) & 1) << k for k in range(32))


@pytest.mark.parametrize(("table", "case"), list(zip(TABLES, LOP3, strict=True)))
def test_lop3(table: int, case: Case) -> None:
    """Every function of three bits is a table."""
    rows = combinations(*(interesting(32, seed=k) for k in range(3)), most=600)
    check(case, rows, lambda a, b, c: lookup(table, a, b, c))


@pytest.mark.parametrize(("table", "combine", "both", "sink"), LOP3_PREDICATE)
def test_lop3_predicate(table: int, combine: str, both: Case, sink: Case) -> None:
    """Whether the result is not zero, combined with a predicate."""
    rows = combinations([0, 1, 0xF0F0], [0, 1, 0xF0F0, 0xFFFFFFFF], [0, 1, 0xFFFF], [0, 1])
    for case in (both, sink):
        check(case, rows, lambda a, b, c, q: OPERATIONS[combine](int(lookup(table, a, b, c) != 0), q))


@pytest.mark.parametrize("case", SHL + SHR, ids=str)
def test_shifts(case: Case) -> None:
    """Amounts are clamped to the width."""
    wanted = (lambda a, n: a << min(n, 64)) if case.text.startswith("shl") else (lambda a, n: a >> min(n, 64))
    check(case, combinations(interesting(bits_of(case.result)), AMOUNTS), wanted)


@pytest.mark.parametrize(("way", "n", "case"), BY_CONSTANT)
def test_shift_by_constant(way: str, n: int, case: Case) -> None:
    """The amount is an immediate of 32 bits."""
    check(case, [(x,) for x in interesting(64)], lambda a: a << n if way == "shl" else a >> n)


@pytest.mark.parametrize("case", SHF, ids=str)
def test_funnel_shift(case: Case) -> None:
    """b above a."""

    def wanted(a: int, b: int, n: int) -> int:
        n = min(n, 32) if "clamp" in case.text else n & 31
        both = b << 32 | a
        return both << n >> 32 if ".l." in case.text else both >> n

    check(case, combinations(interesting(32), interesting(32, seed=1), AMOUNTS, most=3000), wanted)
