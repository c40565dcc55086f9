"""Instructions on bits, against their definitions in the PTX ISA, bit by bit."""

from __future__ import annotations

import pytest

from emulator.tests.instructions.integers import check, combinations, interesting, value
from emulator.tests.instructions.ptx_template import Case, Sheet, bits_of

SHEET = Sheet()
COUNTS = [SHEET.add(f"{op}.{t} d, a", "b32", t) for op in ("popc", "clz") for t in ("b32", "b64")]
REVERSALS = [SHEET.add(f"brev.{t} d, a", t, t) for t in ("b32", "b64")]
FINDS = [
    SHEET.add(f"bfind{amount}.{t} d, a", "b32", t) for amount in ("", ".shiftamt") for t in ("u32", "s32", "u64", "s64")
]
EXTRACTIONS = [SHEET.add(f"bfe.{t} d, a, b, c", t, t, "b32", "b32") for t in ("u32", "s32", "u64", "s64")]
INSERTIONS = [SHEET.add(f"bfi.{t} d, a, b, c, e", t, t, t, "b32", "b32") for t in ("b32", "b64")]
FNS = SHEET.add("fns.b32 d, a, b, c", "b32", "b32", "b32", "s32")
MASKS = [SHEET.add(f"bmsk.{mode}.b32 d, a, b", "b32", "b32", "b32") for mode in ("clamp", "wrap")]
EXTENSIONS = [SHEET.add(f"szext.{mode}.{t} d, a, b", t, t, "b32") for mode in ("clamp", "wrap") for t in ("u32", "s32")]
POSITIONS = [0, 1, 5, 15, 16, 31, 32, 33, 40, 63, 64, 65, 200, 255, 256, 261, 0xFFFFFFFF]


def test_ptxas_accepts() -> None:
    """The kernels are valid PTX."""
    SHEET.assemble()


def values(type_name: str) -> list[int]:
    return interesting(bits_of(type_name), more=30) + [1 << k for k in range(bits_of(type_name))]


@pytest.mark.parametrize("case", COUNTS, ids=str)
def test_counts(case: Case) -> None:
    """Bits set, and zeros before the first."""
    width = bits_of(case.sources[0])
    wanted = (lambda a: a.bit_count()) if case.text.startswith("popc") else (lambda a: width - a.bit_length())
    check(case, [(x,) for x in values(case.sources[0])], wanted)


@pytest.mark.parametrize("case", REVERSALS, ids=str)
def test_reversal(case: Case) -> None:
    """The first bit becomes the last."""
    width = bits_of(case.result)
    check(case, [(x,) for x in values(case.result)], lambda a: int(f"{a:0{width}b}"[::-1], 2))


@pytest.mark.parametrize("case", FINDS, ids=str)
def test_find(case: Case) -> None:
    """The highest bit that is not a copy of the sign."""
    width = bits_of(case.sources[0])

    def wanted(a: int) -> int:
        position = (~a if a < 0 else a).bit_length() - 1
        return position if position < 0 or "shiftamt" not in case.text else width - 1 - position

    check(case, [(x,) for x in values(case.sources[0])], wanted)


@pytest.mark.parametrize("case", EXTRACTIONS, ids=str)
def test_extract(case: Case) -> None:
    """bfe, bit by bit."""
    type_name, top = case.result, bits_of(case.result) - 1

    def wanted(a: int, b: int, c: int) -> int:
        a &= (2 << top) - 1
        position, length = b & 0xFF, c & 0xFF
        sign = 0 if type_name[0] == "u" or length == 0 else a >> min(position + length - 1, top) & 1
        return sum((a >> position + i & 1 if i < length and position + i <= top else sign) << i for i in range(top + 1))

    check(case, combinations(interesting(top + 1), POSITIONS, POSITIONS, most=3000), wanted)


@pytest.mark.parametrize("case", INSERTIONS, ids=str)
def test_insert(case: Case) -> None:
    """bfi, bit by bit."""
    width = bits_of(case.result)

    def wanted(a: int, b: int, c: int, d: int) -> int:
        position, length = c & 0xFF, d & 0xFF
        for i in range(length):
            if position + i < width:
                b = b & ~(1 << position + i) | (a >> i & 1) << position + i
        return b

    pools = (interesting(width), interesting(width, seed=1), POSITIONS, POSITIONS)
    check(case, combinations(*pools, most=3000), wanted)


def test_nth_set() -> None:
    """fns walks from the base in the direction of the offset."""

    def wanted(mask: int, base: int, offset: int) -> int:
        if offset == 0:
            return base if mask >> base & 1 else -1
        step = 1 if offset > 0 else -1
        found = [p for p in range(base, 32 if step > 0 else -1, step) if mask >> p & 1]
        return found[abs(offset) - 1] if len(found) >= abs(offset) else -1

    offsets = [k % (1 << 32) for k in (0, 1, 2, 3, 7, 31, 32, 33, -1, -2, -3, -8, -32, -33)]
    check(FNS, combinations(interesting(32), [0, 1, 7, 16, 30, 31], offsets, most=3000), wanted)


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_masks(case: Case) -> None:
    """Bits [a, a + b)."""
    clamp = "clamp" in case.text

    def wanted(a: int, b: int) -> int:
        if not clamp:
            a, b = a & 31, b & 31
        return sum(1 << k for k in range(32) if a <= k < a + b)

    check(case, combinations(POSITIONS, POSITIONS), wanted)


@pytest.mark.parametrize("case", EXTENSIONS, ids=str)
def test_extensions(case: Case) -> None:
    """The low b bits as a number."""

    def wanted(a: int, b: int) -> int:
        if b >= 32 and "clamp" in case.text:
            return a
        n = b & 31
        low = a & ((1 << n) - 1)
        return low - (1 << n) if n and case.result == "s32" and low >> (n - 1) else low

    check(case, combinations(interesting(32, more=20), POSITIONS), wanted)


def test_value_is_signed() -> None:
    """The helper that the other tests rely on."""
    assert value(0xFFFF, "s16") == -1
    assert value(0xFFFF, "u16") == 0xFFFF
