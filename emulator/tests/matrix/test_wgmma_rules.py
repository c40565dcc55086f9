"""What wgmma demands of fences, groups, registers, shared memory and descriptors."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.matrix import formats, fragments, ptx_text, wgmma_kernels
from emulator.tests.matrix.descriptors import Layout, descriptor, place
from emulator.tests.matrix.wgmma_kernels import Form

FORM = Form(8)
REGISTERS = Form(8, registers=True)
WIDE = Form(16)
COPY = wgmma_kernels.copy_image()
LOAD = ptx_text.load_registers("c", "d", 4) + ptx_text.load_registers("fragments", "a", 4)
FENCE = "wgmma.fence.sync.aligned;\n"
COMMIT = "wgmma.commit_group.sync.aligned;\n"
WAIT = "wgmma.wait_group.sync.aligned 0;\n"
WAIT_ONE = "wgmma.wait_group.sync.aligned 1;\n"
MULTIPLY = FORM.text("%w8", "%w9", "%yes")
MULTIPLY_E = FORM.text("%w8", "%w9", "%yes", ptx_text.names("e", 4))
MULTIPLY_REGISTERS = REGISTERS.text("{%a0, %a1, %a2, %a3}", "%w9", "%yes")
STORE = ptx_text.store_registers("d", "d", 4)
STORE_E = ptx_text.store_registers("d", "e", 4)
OVERWRITE = "st.shared.v4.b32 [%r1], {%a0, %a1, %a2, %a3};\n"


def copies(to: str, source: str) -> str:
    return "".join(f"mov.b32 %{to}{k}, %{source}{k};\n" for k in range(4))


class Case(NamedTuple):
    body: str
    fault: str = ""  # kinds that it may be found as
    products: int = 1  # of A and B that the sums hold


CASES = {
    "sound": Case(COPY + LOAD + FENCE + MULTIPLY + COMMIT + WAIT + STORE),
    "no_fence": Case(COPY + LOAD + MULTIPLY + COMMIT + WAIT + STORE, "wgmma_misuse"),
    "no_wait": Case(COPY + LOAD + FENCE + MULTIPLY + COMMIT + STORE + WAIT, "async_too_early"),
    "no_commit": Case(COPY + LOAD + FENCE + MULTIPLY + WAIT + STORE, "async_too_early"),
    "wait_too_lax": Case(COPY + LOAD + FENCE + MULTIPLY + COMMIT + WAIT_ONE + STORE, "async_too_early"),
    "no_wait_before_exit": Case(COPY + LOAD + FENCE + MULTIPLY + COMMIT, "async_not_awaited"),
    "chained": Case(COPY + LOAD + FENCE + MULTIPLY * 3 + COMMIT + WAIT + STORE, products=3),
    "chained_in_two_groups": Case(COPY + LOAD + FENCE + (MULTIPLY + COMMIT) * 2 + WAIT + STORE, products=2),
    "older_group_only": Case(
        COPY + LOAD + FENCE + (MULTIPLY + COMMIT) * 2 + WAIT_ONE + STORE + WAIT, "async_too_early"
    ),
    "older_group_of_two": Case(
        COPY + LOAD + copies("e", "d") + FENCE + MULTIPLY + COMMIT + MULTIPLY_E + COMMIT + WAIT_ONE + STORE + WAIT
    ),
    "younger_group_of_two": Case(
        COPY + LOAD + copies("e", "d") + FENCE + MULTIPLY + COMMIT + MULTIPLY_E + COMMIT + WAIT_ONE + STORE_E + WAIT,
        "async_too_early",
    ),
    "copied_in_flight": Case(COPY + LOAD + FENCE + MULTIPLY + COMMIT + copies("e", "d") + WAIT + STORE_E),
    "copy_used_in_flight": Case(
        COPY + LOAD + FENCE + MULTIPLY + COMMIT + copies("e", "d") + STORE_E + WAIT, "async_too_early"
    ),
    "chained_through_copies": Case(
        COPY
        + LOAD
        + FENCE
        + MULTIPLY
        + copies("e", "d")
        + MULTIPLY_E
        + copies("d", "e")
        + MULTIPLY
        + COMMIT
        + WAIT
        + STORE,
        products=3,
    ),
    "copied_after_the_fence": Case(COPY + LOAD + FENCE + copies("e", "d") + MULTIPLY_E + COMMIT + WAIT + STORE_E),
    "written_after_the_fence": Case(
        COPY + LOAD + FENCE + "add.u32 %d2, %d2, 0;\n" + MULTIPLY + COMMIT + WAIT + STORE, "wgmma_misuse"
    ),
    "computed_and_copied_after_the_fence": Case(
        COPY + LOAD + FENCE + "add.u32 %d2, %d2, 0;\n" + copies("e", "d") + MULTIPLY_E + COMMIT + WAIT + STORE_E,
        "wgmma_misuse",
    ),
    "fenced_again": Case(
        COPY
        + LOAD
        + FENCE
        + MULTIPLY
        + COMMIT
        + WAIT
        + "add.u32 %d2, %d2, 0;\n"
        + FENCE
        + MULTIPLY
        + COMMIT
        + WAIT
        + STORE,
        products=2,
    ),
    "not_fenced_again": Case(
        COPY + LOAD + FENCE + MULTIPLY + COMMIT + WAIT + "add.u32 %d2, %d2, 0;\n" + MULTIPLY + COMMIT + WAIT + STORE,
        "wgmma_misuse",
    ),
    "accumulator_written_in_flight": Case(
        COPY + LOAD + FENCE + MULTIPLY + COMMIT + "mov.b32 %d1, 0;\n" + WAIT + STORE, "async_too_early"
    ),
    "accumulator_of_another_shape": Case(
        COPY
        + LOAD
        + copies("e", "d")
        + FENCE
        + MULTIPLY
        + WIDE.text("%w8", "%w9", "%no", "{%d0, %d1, %d2, %d3, %e0, %e1, %e2, %e3}")
        + COMMIT
        + WAIT,
        "async_too_early",
    ),
    "accumulator_as_a": Case(
        COPY
        + LOAD
        + FENCE
        + MULTIPLY
        + REGISTERS.text("{%d0, %d1, %d2, %d3}", "%w9", "%no", ptx_text.names("e", 4))
        + COMMIT
        + WAIT
        + STORE,
        "async_too_early",
    ),
    "a_in_registers": Case(COPY + LOAD + FENCE + MULTIPLY_REGISTERS + COMMIT + WAIT + STORE),
    "a_in_registers_twice": Case(COPY + LOAD + FENCE + MULTIPLY_REGISTERS * 2 + COMMIT + WAIT + STORE, products=2),
    "a_written_in_flight": Case(
        COPY + LOAD + FENCE + MULTIPLY_REGISTERS + COMMIT + "mov.b32 %a3, 0;\n" + WAIT + STORE, "async_too_early"
    ),
    "a_read_in_flight": Case(
        COPY + LOAD + FENCE + MULTIPLY_REGISTERS + COMMIT + "add.u32 %r9, %a3, 0;\n" + WAIT + STORE, "async_too_early"
    ),
    "a_free_after_the_wait": Case(
        COPY + LOAD + FENCE + MULTIPLY_REGISTERS + COMMIT + WAIT + "add.u32 %a3, %a3, 0;\n" + STORE
    ),
    "a_written_after_the_fence": Case(
        COPY + LOAD + FENCE + "add.u32 %a3, %a3, 0;\n" + MULTIPLY_REGISTERS + COMMIT + WAIT + STORE, "wgmma_misuse"
    ),
    "accumulator_unwritten": Case(COPY + FENCE + MULTIPLY + COMMIT + WAIT + STORE, "uninitialised_register"),
    "accumulator_unwritten_and_ignored": Case(
        COPY + FENCE + FORM.text("%w8", "%w9", "%no") + MULTIPLY + COMMIT + WAIT + STORE, products=-2
    ),
    "lanes_disagree_about_scale": Case(
        COPY + LOAD + FENCE + "setp.lt.u32 %q, %lane, 16;\n" + FORM.text("%w8", "%w9", "%q") + COMMIT + WAIT + STORE,
        "wgmma_misuse",
    ),
    "memory_written_in_flight": Case(
        COPY + LOAD + FENCE + MULTIPLY + COMMIT + OVERWRITE + WAIT + STORE, "async_too_early shared_race"
    ),
    "memory_written_after_own_wait": Case(
        COPY + LOAD + FENCE + MULTIPLY + COMMIT + WAIT + OVERWRITE + STORE, "async_too_early shared_race"
    ),
    "memory_written_after_all_waited": Case(
        COPY
        + LOAD
        + FENCE
        + MULTIPLY
        + COMMIT
        + WAIT
        + "bar.sync 0;\nsetp.eq.u32 %q, %thread, 0;\n@%q "
        + OVERWRITE
        + STORE
    ),
    "no_proxy_fence": Case(
        COPY.replace("fence.proxy.async;", "") + LOAD + FENCE + MULTIPLY + COMMIT + WAIT + STORE, "missing_proxy_fence"
    ),
    "no_barrier": Case(
        COPY.replace("bar.sync 0;", "") + LOAD + FENCE + MULTIPLY + COMMIT + WAIT + STORE,
        "shared_race uninitialised_shared missing_proxy_fence",
    ),
    "a_warp_stays_away": Case(
        COPY
        + LOAD
        + "setp.ge.u32 %q, %thread, 96;\n@%q bra OUT;\n"
        + FENCE
        + MULTIPLY
        + COMMIT
        + WAIT
        + STORE
        + "OUT:\n",
        "wgmma_misuse",
    ),
    "lanes_disagree_about_descriptor": Case(
        COPY + LOAD + FENCE + "cvt.u64.u32 %w5, %lane;\nadd.u64 %w8, %w8, %w5;\n" + MULTIPLY + COMMIT + WAIT + STORE,
        "bad_descriptor",
    ),
    "start_nowhere": Case(
        COPY + LOAD + FENCE + "mov.u64 %w8, 0;\n" + MULTIPLY + COMMIT + WAIT + STORE, "bad_descriptor"
    ),
}


@cache
def text() -> str:
    registers = [".reg .b32 %d<4>;", ".reg .b32 %e<4>;", ".reg .b32 %a<4>;"]
    entries = [
        ptx_text.kernel(
            name,
            case.body,
            pointers=["image", "fragments", "c", "d"],
            scalars=["bytes", "desc_a", "desc_b"],
            registers=registers,
        )
        for name, case in CASES.items()
    ]
    return ptx_text.module(entries, "sm_90a", shared=True)


LAYOUT_A = Layout("128B", True, 2, 0, 16, 1024)
LAYOUT_B = Layout("128B", True, 2, 8192, 16, 1024)
BYTES = 8192 + 2048


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A, B, C, and A and B in shared memory."""
    rng = np.random.default_rng(0)
    a, b, c = (formats.grid_values(rng, shape, "bf16") for shape in ((64, 16), (16, 8), (64, 8)))
    image = np.zeros(BYTES, np.uint8)
    place(image, formats.encode(a, "bf16"), LAYOUT_A)
    place(image, formats.encode(b.T, "bf16"), LAYOUT_B)
    return a, b, c, image


def launch(
    name: str, threads: int = 128, seed: int = 0, desc_a: int | None = None, image: np.ndarray | None = None
) -> tuple[np.ndarray, emulator.Gpu]:
    a, _, c, built = operands()
    gpu = emulator.Gpu("H100", seed=seed)
    d_map, a_map = fragments.wgmma_d(8), fragments.wgmma_a("bf16")
    packed_c = gpu.array(fragments.pack(formats.encode(c, "f32").reshape(4, 16, 8), d_map))
    packed_a = gpu.array(fragments.pack(formats.encode(a, "bf16").reshape(4, 16, 16), a_map))
    out = gpu.zeros(packed_c.shape, np.uint32)
    gpu.load(text())[name](
        1,
        threads,
        gpu.array(built if image is None else image),
        packed_a,
        packed_c,
        out,
        BYTES,
        descriptor(LAYOUT_A) if desc_a is None else desc_a,
        descriptor(LAYOUT_B),
        shared_bytes=BYTES,
    )
    return fragments.unpack(out, d_map, (16, 8), np.uint32).view(np.float32).reshape(64, 8), gpu


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_rules(name: str, seed: int) -> None:
    case = CASES[name]
    if case.fault:
        with pytest.raises(emulator.Fault) as fault:
            launch(name, seed=seed)
        assert fault.value.kind in case.fault.split()
        return
    a, b, c, _ = operands()
    got, _ = launch(name, seed=seed)
    assert_array_equal(got, a @ b * abs(case.products) + (c if case.products > 0 else 0))


def test_three_warps() -> None:
    with pytest.raises(emulator.Fault, match="warpgroup") as fault:
        launch("sound", threads=96)
    assert fault.value.kind == "wgmma_misuse"


def test_two_warpgroups_have_rows_of_their_own() -> None:
    """The second group multiplies the same rows of A: which rows a warp has is decided within its group."""
    a, b, c, image = operands()
    gpu = emulator.Gpu("H100")
    d_map, a_map = fragments.wgmma_d(8), fragments.wgmma_a("bf16")
    twice = np.concatenate([c, c + 1]).reshape(8, 16, 8)
    packed_c = gpu.array(fragments.pack(formats.encode(twice, "f32"), d_map))
    packed_a = gpu.array(np.tile(fragments.pack(formats.encode(a, "bf16").reshape(4, 16, 16), a_map), (2, 1, 1)))
    out = gpu.zeros(packed_c.shape, np.uint32)
    arrays = (gpu.array(image), packed_a, packed_c, out)
    descriptors = (descriptor(LAYOUT_A), descriptor(LAYOUT_B))
    gpu.load(text())["sound"](1, 256, *arrays, BYTES, *descriptors, shared_bytes=BYTES)
    got = fragments.unpack(out, d_map, (16, 8), np.uint32).view(np.float32).reshape(128, 8)
    assert_array_equal(got, np.concatenate([a @ b + c, a @ b + c + 1]))


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (descriptor(LAYOUT_A) | 1 << 15, "reserved"),
        (descriptor(LAYOUT_A) | 1 << 31, "reserved"),
        (descriptor(LAYOUT_A) | 1 << 46, "reserved"),
        (descriptor(LAYOUT_A) | 1 << 55, "reserved"),
        (descriptor(LAYOUT_A, advance=128), "base offset"),
        (descriptor(LAYOUT_A, base_offset=1), "base offset"),
        (descriptor(Layout("none", True, 2, 0, 128, 256), base_offset=1), "base offset"),
        (descriptor(Layout("64B", True, 2, 256, 16, 512)), "base offset"),
        (descriptor(Layout("128B", True, 2, 0, 16, 2048)), "leaves shared memory"),
        (descriptor(Layout("128B", True, 2, 9 * 1024, 16, 1024)), "leaves shared memory"),
    ],
)
def test_bad_descriptors(bits: int, words: str) -> None:
    with pytest.raises(emulator.Fault, match=words) as fault:
        launch("sound", desc_a=bits)
    assert fault.value.kind == "bad_descriptor"
    assert "matrix A" in str(fault.value)


def test_base_offset() -> None:
    """A swizzle pattern that does not begin at a multiple of 1024 bytes: the base offset says in which row it does."""
    a, b, c, _ = operands()
    image = np.zeros(BYTES, np.uint8)
    rows = 2
    pattern = np.zeros(8192, np.uint8)
    place(pattern, formats.encode(a, "bf16"), LAYOUT_A)
    bits = descriptor(LAYOUT_A, advance=128 * rows, base_offset=rows)
    image[128 * rows : 128 * rows + 8192] = pattern
    # B behind it.
    behind = Layout("128B", True, 2, 9216, 16, 1024)
    place(image, formats.encode(b.T, "bf16"), behind)
    gpu = emulator.Gpu("H100")
    d_map = fragments.wgmma_d(8)
    packed_c = gpu.array(fragments.pack(formats.encode(c, "f32").reshape(4, 16, 8), d_map))
    out = gpu.zeros(packed_c.shape, np.uint32)
    gpu.load(text())["sound"](
        1, 128, gpu.array(image), packed_c, packed_c, out, BYTES, bits, descriptor(behind), shared_bytes=BYTES
    )
    got = fragments.unpack(out, d_map, (16, 8), np.uint32).view(np.float32).reshape(64, 8)
    assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 "
        "{%d0, %d1, %d2, %d3}, %w8, %w9, %d0, 0, %yes, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc {%d0, %d1, %d2, %d3}, %w8, %w9, %yes;",
    ],
)
def test_unsupported(instruction: str) -> None:
    entry = ptx_text.kernel("k", instruction, pointers="o", registers=[".reg .b32 %d<4>;"])
    with pytest.raises(emulator.Fault) as fault:
        emulator.Gpu("H100").load(ptx_text.module(entry, "sm_90a"))["k"](1, 128, np.zeros(1, np.uint32))
    assert fault.value.kind == "unsupported"
