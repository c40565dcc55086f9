"""Integer arithmetic against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.tests.instructions.integers import check, clamp, combinations, interesting, limits, value
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of

SHEET = Sheet()
TYPES = ["u16", "s16", "u32", "s32", "u64", "s64"]
Wanted = Callable[..., int]


def c_divide(a: int, b: int) -> int:
    """Towards zero; all ones for a division by zero."""
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def c_remainder(a: int, b: int) -> int:
    """What is left of c_divide; the dividend for a division by zero."""
    return a if b == 0 else a - b * c_divide(a, b)


def low_24(x: int, type_name: str) -> int:
    """The low 24 bits as a number."""
    x &= 0xFFFFFF
    return x - (1 << 24) if type_name[0] == "s" and x >> 23 else x


def halves(operation: Wanted, type_name: str) -> Wanted:
    """The operation on both halves of packed values."""

    def packed(*sources: int) -> int:
        low = operation(*(value(x & 0xFFFF, type_name) for x in sources)) & 0xFFFF
        high = operation(*(value(x >> 16 & 0xFFFF, type_name) for x in sources)) & 0xFFFF
        return low | high << 16

    return packed


def wide(type_name: str) -> str:
    """Twice the bits."""
    return f"{type_name[0]}{2 * bits_of(type_name)}"


def cases() -> list[tuple[Case, Wanted]]:
    """Instructions and what they compute."""
    found: list[tuple[Case, Wanted]] = []

    def one(text: str, wanted: Wanted, result: str, *sources: str) -> None:
        found.append((SHEET.add(text, result, *sources), wanted))

    for t in TYPES:
        w = bits_of(t)
        one(f"add.{t} d, a, b", lambda a, b: a + b, t, t, t)
        one(f"sub.{t} d, a, b", lambda a, b: a - b, t, t, t)
        one(f"mul.lo.{t} d, a, b", lambda a, b: a * b, t, t, t)
        one(f"mul.hi.{t} d, a, b", lambda a, b, w=w: a * b >> w, t, t, t)
        one(f"mad.lo.{t} d, a, b, c", lambda a, b, c: a * b + c, t, t, t, t)
        one(f"mad.hi.{t} d, a, b, c", lambda a, b, c, w=w: (a * b >> w) + c, t, t, t, t)
        one(f"sad.{t} d, a, b, c", lambda a, b, c: c + abs(a - b), t, t, t, t)
        one(f"div.{t} d, a, b", c_divide, t, t, t)
        one(f"rem.{t} d, a, b", c_remainder, t, t, t)
        one(f"min.{t} d, a, b", min, t, t, t)
        one(f"max.{t} d, a, b", max, t, t, t)
        if t[0] == "s":
            one(f"neg.{t} d, a", lambda a: -a, t, t)
            one(f"abs.{t} d, a", abs, t, t)
        if w < 64:
            one(f"mul.wide.{t} d, a, b", lambda a, b: a * b, wide(t), t, t)
            one(f"mad.wide.{t} d, a, b, c", lambda a, b, c: a * b + c, wide(t), t, t, wide(t))
    one("add.sat.s32 d, a, b", lambda a, b: clamp(a + b, "s32"), "s32", "s32", "s32")
    one("sub.sat.s32 d, a, b", lambda a, b: clamp(a - b, "s32"), "s32", "s32", "s32")
    one("mad.hi.sat.s32 d, a, b, c", lambda a, b, c: clamp((a * b >> 32) + c, "s32"), "s32", "s32", "s32", "s32")
    for t in ("u32", "s32"):

        def product(a: int, b: int, t: str = t) -> int:
            return low_24(a, t) * low_24(b, t)

        one(f"mul24.lo.{t} d, a, b", product, t, t, t)
        one(f"mul24.hi.{t} d, a, b", lambda a, b, p=product: p(a, b) >> 16, t, t, t)
        one(f"mad24.lo.{t} d, a, b, c", lambda a, b, c, p=product: p(a, b) + c, t, t, t, t)
        one(f"mad24.hi.{t} d, a, b, c", lambda a, b, c, p=product: (p(a, b) >> 16) + c, t, t, t, t)
    one(
        "mad24.hi.sat.s32 d, a, b, c",
        lambda a, b, c: clamp((low_24(a, "s32") * low_24(b, "s32") >> 16) + c, "s32"),
        *["s32"] * 4,
    )
    for t in ("u16", "s16"):
        one(f"add.{t}x2 d, a, b", halves(lambda a, b: a + b, t), "b32", "b32", "b32")
        one(f"min.{t}x2 d, a, b", halves(min, t), "b32", "b32", "b32")
        one(f"max.{t}x2 d, a, b", halves(max, t), "b32", "b32", "b32")
    for name, operation in (("min", min), ("max", max)):

        def clamped(a: int, b: int, operation: Wanted = operation) -> int:
            return max(operation(a, b), 0)

        one(f"{name}.relu.s32 d, a, b", clamped, "s32", "s32", "s32")
        one(f"{name}.s16x2.relu d, a, b", halves(clamped, "s16"), "b32", "b32", "b32")
    return found


CASES = cases()


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


@pytest.mark.parametrize(("case", "wanted"), CASES, ids=lambda x: str(x) if isinstance(x, Case) else "")
def test_values(case: Case, wanted: Wanted) -> None:
    """Edge values and random ones."""
    rows = combinations(*(interesting(bits_of(t), seed=k) for k, t in enumerate(case.sources)))
    check(case, rows, wanted)


def test_edges_are_among_the_values() -> None:
    """INT_MIN / −1 and division by zero are tried."""
    low, _ = limits("s32")
    rows = combinations(interesting(32), interesting(32, seed=1))
    assert any(value(a, "s32") == low and value(b, "s32") == -1 for a, b in rows)
    assert any(b == 0 for _, b in rows)


DOTS = [
    SHEET.add(f"{op}.{ta}.{tb} d, a, b, c", "b32", "b32", "b32", "b32")
    for op in ("dp4a", "dp2a.lo", "dp2a.hi")
    for ta in ("u32", "s32")
    for tb in ("u32", "s32")
]


@pytest.mark.parametrize("case", DOTS, ids=str)
def test_dot_products(case: Case) -> None:
    """Bytes, or 16-bit values with half of the bytes."""
    opcode = case.text.split(" ")[0]
    ta, tb = opcode.split(".")[-2:]

    def wanted(a: int, b: int, c: int) -> int:
        if opcode.startswith("dp4a"):
            terms = [(a >> 8 * k, b >> 8 * k, 8) for k in range(4)]
        else:
            start = 16 if ".hi" in opcode else 0
            terms = [(a >> 16 * k, b >> start + 8 * k, 16) for k in range(2)]
        return c + sum(value(x, f"{ta[0]}{n}") * value(y, f"{tb[0]}8") for x, y, n in terms)

    check(case, combinations(*(interesting(32, seed=k, more=12) for k in range(3))), wanted)


def chain(*lines: str) -> str:
    return "; ".join(lines)


WIDE_SUM = SHEET.add(
    chain(
        "mov.b64 {%w, %w1}, a",
        "mov.b64 {%w2, %w3}, b",
        "add.cc.u32 %w, %w, %w2",
        "addc.u32 %w1, %w1, %w3",
        "mov.b64 d, {%w, %w1}",
    ),
    *["b64"] * 3,
)
WIDE_DIFFERENCE = SHEET.add(
    chain(
        "mov.b64 {%w, %w1}, a",
        "mov.b64 {%w2, %w3}, b",
        "sub.cc.s32 %w, %w, %w2",
        "subc.s32 %w1, %w1, %w3",
        "mov.b64 d, {%w, %w1}",
    ),
    *["b64"] * 3,
)
# The low 64 bits of a 64-bit product plus c, from 32-bit halves.
WIDE_PRODUCT = SHEET.add(
    chain(
        "mov.b64 {%w, %w1}, a",
        "mov.b64 {%w2, %w3}, b",
        "mov.b64 {%index, %count}, c",
        "mad.lo.cc.u32 %index, %w, %w2, %index",
        "madc.hi.u32 %count, %w, %w2, %count",
        "mad.lo.u32 %count, %w1, %w2, %count",
        "mad.lo.u32 %count, %w, %w3, %count",
        "mov.b64 d, {%index, %count}",
    ),
    *["b64"] * 4,
)
CARRIES = [
    # The carry out of a + b + carry in, where the carry in comes from e + e.
    (
        SHEET.add("add.cc.u32 %w, c, c; addc.cc.u32 %w, a, b; addc.u32 d, 0, 0", "b32", "b32", "b32", "b32"),
        lambda a, b, c: a + b + (c >> 31) >> 32,
    ),
    # The borrow of a − b − borrow in.
    (
        SHEET.add("sub.cc.u32 %w, 0, c; subc.cc.u32 %w, a, b; subc.u32 d, 0, 0", "b32", "b32", "b32", "b32"),
        lambda a, b, c: -1 if a - b - (c != 0) < 0 else 0,
    ),
    (
        SHEET.add("add.cc.u64 %x, c, c; addc.cc.u64 %x, a, b; addc.u64 d, 0, 0", "b64", "b64", "b64", "b64"),
        lambda a, b, c: a + b + (c >> 63) >> 64,
    ),
    (
        SHEET.add("sub.cc.u64 %x, 0, c; subc.cc.u64 %x, a, b; subc.u64 d, 0, 0", "b64", "b64", "b64", "b64"),
        lambda a, b, c: -1 if a - b - (c != 0) < 0 else 0,
    ),
    (
        SHEET.add("add.cc.u32 %w, c, c; madc.lo.cc.u32 %w, a, b, c; addc.u32 d, 0, 0", "b32", "b32", "b32", "b32"),
        lambda a, b, c: (a * b & 0xFFFFFFFF) + c + (c >> 31) >> 32,
    ),
    (
        SHEET.add("add.cc.s64 %x, c, c; madc.hi.cc.u64 %x, a, b, c; addc.u64 d, 0, 0", "b64", "b64", "b64", "b64"),
        lambda a, b, c: (a * b >> 64) + c + (c >> 63) >> 64,
    ),
]


@pytest.mark.parametrize(("case", "wanted"), CARRIES, ids=lambda x: str(x.text) if isinstance(x, Case) else "")
def test_carry(case: Case, wanted: Wanted) -> None:
    """The condition code is set and used."""
    check(case, combinations(*(interesting(bits_of(t), seed=k) for k, t in enumerate(case.sources))), wanted)


def test_chains() -> None:
    """64-bit arithmetic from 32-bit instructions."""
    pools = [interesting(64, seed=k) for k in range(3)]
    check(WIDE_SUM, combinations(*pools[:2]), lambda a, b: a + b)
    check(WIDE_DIFFERENCE, combinations(*pools[:2]), lambda a, b: a - b)
    check(WIDE_PRODUCT, combinations(*pools), lambda a, b, c: a * b + c)


VIDEO = [
    SHEET.add(f"{op}{parts}.{types}{flag} d, a, b, c", "b32", "b32", "b32", "b32")
    for op in ("vadd", "vsub", "vabsdiff", "vmin", "vmax")
    for parts in (2, 4)
    for types in ("u32.u32.u32", "s32.s32.s32", "s32.u32.s32")
    for flag in ("", ".sat", ".add")
]


@pytest.mark.parametrize("case", VIDEO, ids=str)
def test_video(case: Case) -> None:
    """Two or four integers in a register; their sum with .add."""
    opcode, result, ta, tb, *flags = case.text.split(" ")[0].split(".")
    width = 32 // int(opcode[-1])
    operation: Wanted = {
        "vadd": lambda x, y: x + y,
        "vsub": lambda x, y: x - y,
        "vabsdiff": lambda x, y: abs(x - y),
        "vmin": min,
        "vmax": max,
    }[opcode[:-1]]

    def wanted(a: int, b: int, c: int) -> int:
        parts = [
            operation(
                value(a >> k & (1 << width) - 1, f"{ta[0]}{width}"), value(b >> k & (1 << width) - 1, f"{tb[0]}{width}")
            )
            for k in range(0, 32, width)
        ]
        if flags == ["add"]:
            return c + sum(parts)
        if flags == ["sat"]:
            parts = [clamp(x, f"{result[0]}{width}") for x in parts]
        return sum((x & (1 << width) - 1) << k * width for k, x in enumerate(parts))

    check(case, combinations(*(interesting(32, seed=k, more=12) for k in range(3)), most=600), wanted)
