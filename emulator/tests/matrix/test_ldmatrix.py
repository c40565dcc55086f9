"""ldmatrix, stmatrix and movmatrix."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.matrix import ptx_text

COUNTS = (1, 2, 4)
SPACES = ("shared", "shared::cta", "")  # the last: generic addresses
ROW = 16  # bytes
MEMORY = 8192


def name(opcode: str, count: int, transposed: bool, space: str) -> str:
    return f"{opcode}_x{count}{'_trans' if transposed else ''}_{space.replace('::', '_') or 'generic'}"


def source(opcode: str, count: int, transposed: bool, space: str) -> str:
    modifiers = f".sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}{'.' + space if space else ''}.b16"
    address = """
    shl.b32 %r1, %lane, 2;
    cvt.u64.u32 %w1, %r1;
    add.u64 %w1, %p_offsets, %w1;
    ld.global.b32 %r2, [%w1];
    mov.u64 %w2, memory;
    cvt.u32.u64 %r3, %w2;
    add.u32 %r4, %r2, %r3;
    cvta.shared.u64 %w3, %w2;
    cvt.u64.u32 %w4, %r2;
    add.u64 %w3, %w3, %w4;
    """
    copy = """
    shl.b32 %r5, %lane, 2;
    {0}:
    add.u32 %r6, %r3, %r5;
    cvt.u64.u32 %w5, %r5;
    add.u64 %w5, %p_image, %w5;
    {1}
    add.u32 %r5, %r5, 128;
    setp.lt.u32 %q, %r5, 8192;
    @%q bra {0};
    bar.warp.sync -1;
    """
    fill = copy.format("FILL", "ld.global.b32 %r7, [%w5]; st.shared.b32 [%r6], %r7;")
    drain = copy.format("DRAIN", "ld.shared.b32 %r7, [%r6]; st.global.b32 [%w5], %r7;")
    operand = "[%r4]" if space else "[%w3]"
    registers = ptx_text.names("m", count)
    if opcode == "ldmatrix":
        body = address + fill + f"ldmatrix{modifiers} {registers}, {operand};\n"
        body += ptx_text.store_registers("fragments", "m", count)
    else:
        body = address + fill + ptx_text.load_registers("fragments", "m", count)
        body += f"stmatrix{modifiers} {operand}, {registers};\nbar.warp.sync -1;\n" + drain
    return ptx_text.kernel(
        name(opcode, count, transposed, space),
        body,
        pointers=["image", "offsets", "fragments"],
        registers=[".reg .b32 %m<4>;"],
    )


MOVMATRIX = ptx_text.kernel(
    "movmatrix",
    ptx_text.load_registers("i", "i", 1)
    + "movmatrix.sync.aligned.m8n8.trans.b16 %o0, %i0;\n"
    + ptx_text.store_registers("o", "o", 1),
    pointers="io",
    registers=[".reg .b32 %i<1>;", ".reg .b32 %o<1>;"],
)

CASES = [(o, c, t, s) for o in ("ldmatrix", "stmatrix") for c in COUNTS for t in (False, True) for s in SPACES]


@cache
def text() -> str:
    return ptx_text.module([*(source(*case) for case in CASES), MOVMATRIX], "sm_90", shared=True)


def offsets(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows anywhere, none twice; the lanes that give no address have nonsense."""
    rows = rng.permutation(MEMORY // ROW)[:32].astype(np.uint32) * ROW
    rows[8 * count :] = 0xFFFFFFF3
    return rows


def fragment(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """Registers (register, lane) of matrices (count, 8, 8) of 16 bits: lane 4g + t has row g, columns 2t and 2t + 1."""
    if transposed:
        matrices = matrices.swapaxes(-1, -2)
    lanes = np.arange(32)
    row, column = lanes // 4, lanes % 4 * 2
    low, high = matrices[:, row, column].astype(np.uint32), matrices[:, row, column + 1].astype(np.uint32)
    return low | high << 16


@pytest.mark.parametrize(("opcode", "count", "transposed", "space"), CASES)
def test_matrices(opcode: str, count: int, transposed: bool, space: str) -> None:
    rng = np.random.default_rng(count)
    gpu = emulator.Gpu("H100")
    kernel = gpu.load(text())[name(opcode, count, transposed, space)]
    image = gpu.array(rng.integers(0, 2**16, MEMORY // 2, np.uint16))
    where = offsets(rng, count)
    rows = where[: 8 * count] // 2  # in elements
    if opcode == "ldmatrix":
        registers = gpu.empty((count, 32), np.uint32)
        kernel(1, 32, image, gpu.array(where), registers, shared_bytes=MEMORY)
        matrices = image[rows[:, None] + np.arange(8)].reshape(count, 8, 8)
        assert_array_equal(registers, fragment(matrices, transposed))
    else:
        matrices = rng.integers(0, 2**16, (count, 8, 8), np.uint16)
        want = image.copy()
        want[rows[:, None] + np.arange(8)] = matrices.reshape(-1, 8)
        registers = gpu.array(fragment(matrices, transposed))
        kernel(1, 32, image, gpu.array(where), registers, shared_bytes=MEMORY)
        assert_array_equal(image, want)


def test_movmatrix() -> None:
    matrix = np.random.default_rng(0).integers(0, 2**16, (1, 8, 8), np.uint16)
    gpu = emulator.Gpu("H100")
    out = gpu.empty((1, 32), np.uint32)
    gpu.load(text())["movmatrix"](1, 32, gpu.array(fragment(matrix, False)), out)
    assert_array_equal(out, fragment(matrix, True))


@pytest.mark.parametrize(("stride", "wavefronts"), [(16, 4), (32, 8), (64, 16), (128, 32), (144, 4)])
def test_bank_conflicts(stride: int, wavefronts: int) -> None:
    """Eight rows of 16 bytes fill the banks once, unless they lie a multiple of 128 bytes apart."""
    gpu = emulator.Gpu("H100")
    kernel = gpu.load(text())[name("ldmatrix", 4, False, "shared")]
    where = (np.arange(32) * stride).astype(np.uint32)
    image = gpu.zeros(MEMORY // 2, np.uint16)
    launch = kernel(1, 32, image, gpu.array(where), gpu.empty((4, 32), np.uint32), shared_bytes=MEMORY)
    (line,) = [i for i in launch.instructions() if i.opcode.startswith("ldmatrix")]
    assert line.counters.shared_requests == 1
    assert line.counters.shared_bytes == 512
    assert line.counters.shared_wavefronts == wavefronts
    assert line.counters.shared_wavefronts_ideal == 4


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(8, "misaligned"), (MEMORY, "out_of_bounds"), (MEMORY - 8, "misaligned"), (0x7FFFF0, "out_of_bounds")],
)
@pytest.mark.parametrize("opcode", ["ldmatrix", "stmatrix"])
def test_bad_addresses(opcode: str, bad: int, kind: str) -> None:
    gpu = emulator.Gpu("H100")
    kernel = gpu.load(text())[name(opcode, 2, False, "shared")]
    where = (np.arange(32) * ROW).astype(np.uint32)
    where[11] = bad
    with pytest.raises(emulator.Fault) as fault:
        kernel(
            1,
            32,
            gpu.zeros(MEMORY // 2, np.uint16),
            gpu.array(where),
            gpu.zeros((2, 32), np.uint32),
            shared_bytes=MEMORY,
        )
    assert fault.value.kind == kind
    assert fault.value.lane == 11
    assert opcode in fault.value.instruction


def test_two_rows_at_one_place() -> None:
    gpu = emulator.Gpu("H100")
    kernel = gpu.load(text())[name("stmatrix", 4, False, "shared")]
    where = np.zeros(32, np.uint32)
    image = gpu.zeros(MEMORY // 2, np.uint16)
    kernel(1, 32, image, gpu.array(where), gpu.zeros((4, 32), np.uint32), shared_bytes=MEMORY)
    values = np.arange(128, dtype=np.uint32).reshape(4, 32)
    with pytest.raises(emulator.Fault) as fault:
        kernel(1, 32, image, gpu.array(where), gpu.array(values), shared_bytes=MEMORY)
    assert fault.value.kind == "shared_race"


@pytest.mark.parametrize(
    "instruction",
    [
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%m0, %m1}, [%r4];",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 {%m0}, [%r4];",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r4], {%m0};",
    ],
)
def test_unsupported(instruction: str) -> None:
    entry = ptx_text.kernel("k", instruction, pointers="o", registers=[".reg .b32 %m<4>;"])
    with pytest.raises(emulator.Fault) as fault:
        emulator.Gpu("H100").load(f".version 8.8\n.target sm_90a\n.address_size 64\n{entry}")["k"](
            1, 32, np.zeros(1, np.uint32)
        )
    assert fault.value.kind == "unsupported"
