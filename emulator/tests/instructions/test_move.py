"""mov, prmt, cvta, isspacep, special registers."""

from __future__ import annotations

import numpy as np
import pytest

import emulator
from emulator.tests.instructions import integers
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of

SHEET = Sheet()
MOVES = [SHEET.add(f"mov.{t} d, a", t, t) for t in ("b16", "u16", "b32", "s32", "f32", "b64", "u64", "f64", "pred")]
IMMEDIATES = [
    (0xFFFE, SHEET.add("mov.b16 d, -2", "b16", "b16")),
    (0xDEADBEEF, SHEET.add("mov.b32 d, 0xDEADBEEF", "b32", "b32")),
    (0x3FC00000, SHEET.add("mov.f32 d, 0f3FC00000", "f32", "f32")),
    (0x3FC00000, SHEET.add("mov.f32 d, 1.5", "f32", "f32")),
    (0x3FF8000000000000, SHEET.add("mov.f64 d, 1.5", "f64", "f64")),
    (0xFFFFFFFFFFFFFFFF, SHEET.add("mov.b64 d, -1", "b64", "b64")),
    (1, SHEET.add("mov.pred d, 1", "pred", "b32")),
]
# Through every packing: unpacked and packed again in reverse order.
REVERSALS = [
    (32, 16, SHEET.add("mov.b32 {%h, %h1}, a; mov.b32 d, {%h1, %h}", "b32", "b32")),
    (64, 32, SHEET.add("mov.b64 {%w, %w1}, a; mov.b64 d, {%w1, %w}", "b64", "b64")),
    (64, 16, SHEET.add("mov.b64 {%h, %h1, %h2, %h3}, a; mov.b64 d, {%h3, %h2, %h1, %h}", "b64", "b64")),
    (
        32,
        8,
        SHEET.add(".reg .b8 %b<4>; mov.b32 {%b0, %b1, %b2, %b3}, a; mov.b32 d, {%b3, %b2, %b1, %b0}", "b32", "b32"),
    ),
    (16, 8, SHEET.add(".reg .b8 %b<2>; mov.b16 {%b0, %b1}, a; mov.b16 d, {%b1, %b0}", "b16", "b16")),
]
HIGH = SHEET.add("mov.b64 {_, d}, a", "b32", "b64")
ZERO_EXTENDED = SHEET.add("mov.b64 d, {a, 0}", "b64", "b32")
WIDE = SHEET.add(
    ".reg .b128 %q0, %q1; mov.b128 %q0, {a, b}; mov.b128 %q1, %q0; mov.b128 {%x, %x1}, %q1; sub.u64 d, %x, %x1",
    "b64",
    "b64",
    "b64",
)
PRMT = SHEET.add("prmt.b32 d, a, b, c", "b32", "b32", "b32", "b32")
MODES = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
PRMT_MODES = [(mode, SHEET.add(f"prmt.b32.{mode} d, a, b, c", "b32", "b32", "b32", "b32")) for mode in MODES]
THREADS = SHEET.add(
    "mov.u32 %w, %ntid.x; mov.u32 %w1, %ctaid.x; mov.u32 %w2, %tid.x; mad.lo.u32 d, %w, %w1, %w2",
    "b32",
    "b32",
)
NARROW_SPECIAL = SHEET.add("mov.u16 d, %tid.x", "b16", "b16")
LANES = SHEET.add("mov.u32 %w, %laneid; mov.u32 %w1, %lanemask_lt; popc.b32 %w1, %w1; sub.u32 d, %w, %w1", "b32", "b32")
CLOCKS = [
    SHEET.add(f"mov.{t} %{x}, %{name}; mov.{t} %{x}1, %{name}; sub.{t} d, %{x}1, %{x}", f"b{t[1:]}", "b32")
    for t, x, name in (("u32", "w", "clock"), ("u64", "x", "clock64"), ("u64", "x", "globaltimer"))
]
SPACES = ["global", "shared", "shared::cta", "shared::cluster", "local"]
# Whether a generic address is found in a space; the address is that of a variable of some space.
IS_SPACE = [
    (
        have,
        asked,
        SHEET.add(
            f".{have} .b32 variable{k}{n}; mov.u64 %x, variable{k}{n}; cvta.{have}.u64 %x, %x; isspacep.{asked} d, %x",
            "pred",
            "b32",
        ),
    )
    for k, have in enumerate(("shared", "local"))
    for n, asked in enumerate(SPACES)
]
IS_GLOBAL = [(asked, SHEET.add(f"isspacep.{asked} d, a", "pred", "b64")) for asked in SPACES]
ROUND_TRIPS = [
    SHEET.add(
        f".{space} .b32 there_{space}; mov.u64 %x, there_{space}; cvta.{space}.u64 %x1, %x;"
        f"cvta.to.{space}.u64 %x2, %x1;"
        "sub.u64 %x, %x, %x2; st.b32 [%x1], a; ld.b32 %w, [%x1]; cvt.u32.u64 %w1, %x; sub.u32 d, %w, %w1",
        "b32",
        "b32",
    )
    for space in ("shared", "local")
]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


@pytest.mark.parametrize("case", MOVES, ids=str)
def test_mov(case: Case) -> None:
    """Bits stay what they are."""
    width = bits_of(case.result)
    pool = [0, 1] if width == 1 else integers.interesting(width)
    integers.check(case, [(x,) for x in pool], lambda a: a)


@pytest.mark.parametrize(("wanted", "case"), IMMEDIATES, ids=str)
def test_immediates(wanted: int, case: Case) -> None:
    """Integers, hexadecimal floats, decimal floats."""
    assert (case(np.arange(40)) == wanted).all()


@pytest.mark.parametrize(("width", "part", "case"), REVERSALS, ids=str)
def test_packing(width: int, part: int, case: Case) -> None:
    """The first element is the lowest."""

    def wanted(a: int) -> int:
        pieces = [a >> k & ((1 << part) - 1) for k in range(0, width, part)]
        return sum(x << k * part for k, x in enumerate(reversed(pieces)))

    integers.check(case, [(x,) for x in integers.interesting(width, more=20)], wanted)


def test_packing_of_parts() -> None:
    """Sinks, immediates, 128 bits."""
    pool = integers.interesting(64)
    integers.check(HIGH, [(x,) for x in pool], lambda a: a >> 32)
    integers.check(ZERO_EXTENDED, [(x,) for x in integers.interesting(32)], lambda a: a)
    integers.check(WIDE, integers.combinations(pool, pool), lambda a, b: a - b)


def permuted(a: int, b: int, selectors: list[int]) -> int:
    """Bytes of b:a; bit 3 of a selector asks for its sign."""
    taken = b << 32 | a
    out = 0
    for k, selector in enumerate(selectors):
        byte = taken >> 8 * (selector & 7) & 0xFF
        out |= (0xFF * (byte >> 7) if selector & 8 else byte) << 8 * k
    return out


def test_prmt() -> None:
    """All selectors of a byte, in each place."""
    selectors = [s * 0x1111 for s in range(16)] + [0x3210, 0x7654, 0xFEDC, 0x5410, 0x7632, 0xFFFF1234, 0x0088]
    rows = integers.combinations(integers.interesting(32), integers.interesting(32), selectors, most=3000)
    integers.check(PRMT, rows, lambda a, b, c: permuted(a, b, [c >> 4 * k & 15 for k in range(4)]))


# The bytes of the result, first to last, by the low two bits of c; from the table of the PTX ISA, which has them last
# to first.
PRMT_TABLE = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}


@pytest.mark.parametrize(("mode", "case"), PRMT_MODES, ids=str)
def test_prmt_modes(mode: str, case: Case) -> None:
    """Against the table."""
    rows = integers.combinations(integers.interesting(32), integers.interesting(32), [0, 1, 2, 3, 7, 0xFFFFFFFC])
    integers.check(case, rows, lambda a, b, c: permuted(a, b, [int(x) for x in reversed(PRMT_TABLE[mode][c & 3])]))


def test_special_registers() -> None:
    """Of threads, blocks and lanes."""
    x = np.zeros(1000)
    np.testing.assert_array_equal(THREADS(x), np.arange(1000))
    np.testing.assert_array_equal(NARROW_SPECIAL(x), np.arange(1000) % 128)
    assert (LANES(x) == 0).all()


@pytest.mark.parametrize("case", CLOCKS, ids=str)
def test_clocks(case: Case) -> None:
    """Time goes on."""
    assert case.sheet.module[case.name] is not None
    assert clock_difference(case) < 1 << 31


def clock_difference(case: Case) -> int:
    """Largest difference of two readings, one after the other. The runs of a case differ, so it is launched here."""
    out = np.zeros(32, np.uint64 if case.result == "b64" else np.uint32)
    case.sheet.module[case.name](1, 32, out, np.zeros(32, np.uint32), 32, 0xFFFFFFFF)
    return int(out.max())


@pytest.mark.parametrize(("have", "asked", "case"), IS_SPACE, ids=str)
def test_isspacep(have: str, asked: str, case: Case) -> None:
    """Addresses of variables."""
    assert (case(np.zeros(40)) == (have == asked.split(":")[0])).all()


@pytest.mark.parametrize(("asked", "case"), IS_GLOBAL, ids=str)
def test_isspacep_of_global(asked: str, case: Case) -> None:
    """Addresses of arrays."""
    array = emulator.Gpu("H100").zeros(4)
    assert (case(np.full(40, array.ctypes.data, np.uint64)) == (asked == "global")).all()


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=str)
def test_cvta(case: Case) -> None:
    """To a generic address, which works, and back."""
    # One thread: all threads of a block share the variable of the first case.
    out, a = np.zeros(1, np.uint32), np.array([12345], np.uint32)
    case.sheet.module[case.name](1, 1, out, a, 1, 1)
    assert out[0] == 12345
