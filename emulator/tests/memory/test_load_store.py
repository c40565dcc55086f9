"""ld and st: widths, vectors, extension, spaces, faults at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.memory.ptx_text import entry, fault_kind, module

LANES = 32
REGISTER = {16: "h", 32: "r", 64: "d"}
NUMPY = {
    f"{kind}{bits}": np.dtype(f"{'int' if kind == 's' else 'uint'}{bits}") for kind in "usb" for bits in (8, 16, 32, 64)
}
# Lanes in order, in reverse, all the same, and in an order with gaps.
ORDERS = {
    "in_order": np.arange(LANES),
    "reversed": np.arange(LANES)[::-1],
    "same": np.full(LANES, 5),
    "gaps": np.arange(LANES) * 7 % LANES,
}


def random_bytes(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def names(register: str, count: int, first: int = 20) -> str:
    listed = ", ".join(f"%{register}{first + k}" for k in range(count))
    return listed if count == 1 else "{" + listed + "}"


VECTORS = [
    *[(bits, n) for bits in (8, 16, 32) for n in (1, 2, 4)],
    (64, 1),
    (64, 2),
]


@pytest.fixture(scope="module")
def copies() -> Any:
    """Kernels that copy a vector per lane: p0[p2[tid]] → p1[p3[tid]]; `odd_…`: the odd lanes only."""
    entries = []
    for bits, n in VECTORS:
        for guard, prefix in (("", "copy"), ("@%p1 ", "odd")):
            values = names(REGISTER[max(bits, 16)], n)
            vector = "" if n == 1 else f".v{n}"
            entries.append(
                entry(
                    f"{prefix}_{bits}_{n}",
                    f"""
                    and.b32 %r1, %r0, 1;
                    setp.ne.u32 %p1, %r1, 0;
                    mad.lo.u64 %d11, %d10, 8, %d2;
                    ld.global.u64 %d12, [%d11];
                    mad.lo.u64 %d0, %d12, {bits * n // 8}, %d0;
                    mad.lo.u64 %d11, %d10, 8, %d3;
                    ld.global.u64 %d12, [%d11];
                    mad.lo.u64 %d1, %d12, {bits * n // 8}, %d1;
                    {guard}ld.global{vector}.b{bits} {values}, [%d0];
                    {guard}st.global{vector}.b{bits} [%d1], {values};
                    """,
                    pointers=4,
                )
            )
    return module(entries)


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("bits", "n"), VECTORS)
def test_vectors_of_every_width(copies: str, bits: int, n: int, order: str, checks: bool) -> None:
    gpu = emulator.Gpu(checks=checks)
    loaded = gpu.load(copies)
    size = bits * n // 8
    source = gpu.array(random_bytes(LANES * size).reshape(LANES, size))
    index = ORDERS[order].astype(np.uint64)
    straight = np.arange(LANES, dtype=np.uint64)
    out = gpu.zeros(source.shape, np.uint8)
    loaded[f"copy_{bits}_{n}"](1, LANES, source, out, index, straight)
    assert_array_equal(out, source[ORDERS[order]])

    if order != "same":
        out = gpu.zeros(source.shape, np.uint8)
        loaded[f"odd_{bits}_{n}"](1, LANES, source, out, straight, index)
        want = np.zeros_like(source)
        want[ORDERS[order][1::2]] = source[1::2]
        assert_array_equal(out, want)


def test_loads_extend_to_the_register() -> None:
    kinds = [
        (kind, bits, register)
        for kind in "usb"
        for bits in (8, 16, 32, 64)
        for register in (16, 32, 64)
        if bits <= register
    ]
    entries = [
        entry(
            f"k_{kind}{bits}_{register}",
            f"""
            mad.lo.u64 %d0, %d10, {bits // 8}, %d0;
            mad.lo.u64 %d1, %d10, {register // 8}, %d1;
            ld.global.{kind}{bits} %{REGISTER[register]}20, [%d0];
            st.global.b{register} [%d1], %{REGISTER[register]}20;
            """,
        )
        for kind, bits, register in kinds
    ]
    loaded = emulator.Gpu().load(module(entries))
    for kind, bits, register in kinds:
        source = random_bytes(LANES * bits // 8, bits).view(NUMPY[f"{kind}{bits}"])
        out = np.zeros(LANES, NUMPY[f"{kind}{register}"])
        loaded[f"k_{kind}{bits}_{register}"](1, LANES, source, out)
        assert_array_equal(out, source.astype(out.dtype), err_msg=f"{kind}{bits} in {register}")


def test_stores_cut_wider_registers() -> None:
    kinds = [(bits, register) for bits in (8, 16, 32) for register in (32, 64) if bits <= register]
    entries = [
        entry(
            f"k_{bits}_{register}",
            f"""
            mad.lo.u64 %d0, %d10, {register // 8}, %d0;
            mad.lo.u64 %d1, %d10, {bits // 4}, %d1;
            ld.global.b{register} %{REGISTER[register]}20, [%d0];
            st.global.v2.u{bits} [%d1], {{%{REGISTER[register]}20, %{REGISTER[register]}20}};
            """,
        )
        for bits, register in kinds
    ]
    loaded = emulator.Gpu().load(module(entries))
    for bits, register in kinds:
        source = random_bytes(LANES * register // 8, bits).view(NUMPY[f"u{register}"])
        out = np.zeros((LANES, 2), NUMPY[f"u{bits}"])
        loaded[f"k_{bits}_{register}"](1, LANES, source, out)
        assert_array_equal(out, np.stack([source, source], 1).astype(out.dtype))


def test_immediates_and_sinks() -> None:
    text = module(
        entry(
            "k",
            """
            mov.b64 %d20, 0x1122334455667788;
            st.global.u8 [%d1], 200;
            st.global.s16 [%d1+2], -3;
            st.global.v2.u32 [%d1+8], {1, 0xFFFFFFFF};
            st.global.f32 [%d1+16], 0f40490FDB;
            st.global.f64 [%d1+24], 0d400921FB54442D18;
            st.global.b64 [%d1+32], -2;
            ld.global.v4.b32 {%r20, _, %r21, _}, [%d0];
            st.global.v2.b32 [%d1+40], {%r21, %r20};
            ld.global.b32 {%r22}, [%d0+4];
            st.global.b32 [%d1+48], {%r22};
            st.global.v2.u32 [%d1+56], {%d20, 7};
            """,
        )
    )
    source = np.array([11, 22, 33, 44], np.uint32)
    out = np.zeros(64, np.uint8)
    emulator.Gpu().load(text)["k"](1, 1, source, out)
    assert out[0] == 200
    assert out[2:4].view(np.int16)[0] == -3
    assert_array_equal(out[8:16].view(np.uint32), [1, 0xFFFFFFFF])
    assert out[16:20].view(np.float32)[0] == np.float32(np.pi)
    assert out[24:32].view(np.float64)[0] == np.pi
    assert out[32:40].view(np.int64)[0] == -2
    assert_array_equal(out[40:52].view(np.uint32), [33, 11, 22])
    assert_array_equal(out[56:64].view(np.uint32), [0x55667788, 7])


def test_128_bits_in_one_register() -> None:
    text = module(
        entry(
            "k",
            """
            mad.lo.u64 %d0, %d10, 16, %d0;
            mad.lo.u64 %d1, %d10, 16, %d1;
            ld.global.b128 %q1, [%d0];
            st.global.b128 [%d1], %q1;
            """,
        )
    )
    gpu = emulator.Gpu()
    source = gpu.array(random_bytes(LANES * 16))
    out = gpu.zeros(LANES * 16, np.uint8)
    gpu.load(text)["k"](1, LANES, source, out)
    assert_array_equal(out, source)


def test_256_bits_of_blackwell() -> None:
    eight = names("r", 8)
    text = module(
        [
            entry(
                "eight",
                f"""
                mad.lo.u64 %d0, %d10, 32, %d0;
                mad.lo.u64 %d1, %d10, 32, %d1;
                ld.global.v8.b32 {eight}, [%d0];
                st.global.v8.b32 [%d1], {eight};
                """,
            ),
            entry(
                "four",
                """
                mad.lo.u64 %d0, %d10, 32, %d0;
                mad.lo.u64 %d1, %d10, 32, %d1;
                ld.global.L2::evict_last.v4.b64 {%d20, %d21, %d22, %d23}, [%d0];
                st.global.v4.b64 [%d1], {%d20, %d21, %d22, %d23};
                """,
            ),
        ],
        target="sm_100a",
    )
    loaded = emulator.Gpu("B200").load(text)
    source = loaded.gpu.array(random_bytes(LANES * 32))
    for name in ("eight", "four"):
        out = loaded.gpu.zeros(LANES * 32, np.uint8)
        loaded[name](1, LANES, source, out)
        assert_array_equal(out, source)


def test_modifiers_that_do_not_change_the_value() -> None:
    loads = [
        "ld.weak.global.u32",
        "ld.volatile.global.u32",
        "ld.relaxed.gpu.global.u32",
        "ld.acquire.sys.global.u32",
        "ld.mmio.relaxed.sys.global.u32",
        "ld.global.ca.L2::256B.u32",
        "ld.global.lu.u32",
        "ld.global.cv.u32",
        "ld.global.nc.L1::no_allocate.L2::128B.u32",
        "ld.relaxed.cluster.global.L1::no_allocate.u32",
        "ldu.global.u32",
        "ld.u32",
        "ld.acquire.gpu.u32",
    ]
    stores = [
        "st.weak.global.u32",
        "st.volatile.global.u32",
        "st.relaxed.cta.global.u32",
        "st.release.gpu.global.u32",
        "st.mmio.relaxed.sys.global.u32",
        "st.global.wb.u32",
        "st.global.cg.u32",
        "st.global.wt.u32",
        "st.global.L1::no_allocate.u32",
        "st.u32",
    ]
    body = ["mad.lo.u64 %d1, %d10, 4, %d1;", "mad.lo.u64 %d0, %d10, 4, %d0;", "mov.b64 %d20, 0;"]
    for k, load in enumerate(loads):
        body += [f"{load} %r20, [%d0];", f"st.global.u32 [%d1+{128 * k}], %r20;"]
    body += ["ld.global.u32 %r20, [%d0];"]
    body += [f"{store} [%d1+{128 * (k + len(loads))}], %r20;" for k, store in enumerate(stores)]
    last = len(loads) + len(stores)
    body += [
        "ld.global.L2::cache_hint.u32 %r21, [%d0], %d20;",
        f"st.global.L2::cache_hint.u32 [%d1+{128 * last}], %r21, %d20;",
    ]
    source = random_bytes(LANES * 4).view(np.uint32)
    out = np.zeros((last + 1, LANES), np.uint32)
    emulator.Gpu().load(module(entry("k", "\n".join(body))))["k"](1, LANES, source, out)
    assert_array_equal(out, np.broadcast_to(source, out.shape))


SPACES = module(
    [
        entry(
            "shared",
            """
            mov.u32 %r1, tile;
            shl.b32 %r2, %r0, 3;
            add.u32 %r3, %r1, %r2;
            mad.lo.u64 %d0, %d10, 8, %d0;
            mad.lo.u64 %d1, %d10, 8, %d1;
            ld.global.u64 %d20, [%d0];
            st.shared.u64 [%r3], %d20;
            bar.sync 0;
            xor.b32 %r4, %r2, 248;
            add.u32 %r4, %r4, %r1;
            ld.shared::cta.v2.u32 {%r20, %r21}, [%r4];
            st.global.v2.u32 [%d1], {%r20, %r21};
            """,
            extra=".shared .align 8 .b8 tile[256];\n",
        ),
        entry(
            "generic",
            """
            .reg .b64 %shared, %local;
            mov.u64 %shared, tile2;
            cvta.shared.u64 %shared, %shared;
            mad.lo.u64 %shared, %d10, 4, %shared;
            mov.u64 %local, stack;
            cvta.local.u64 %local, %local;
            mad.lo.u64 %d0, %d10, 4, %d0;
            mad.lo.u64 %d1, %d10, 4, %d1;
            ld.u32 %r20, [%d0];
            st.u32 [%shared], %r20;
            ld.u32 %r21, [%shared];
            add.u32 %r21, %r21, 1;
            st.u32 [%local+4], %r21;
            // Odd lanes read shared memory, even ones local memory.
            and.b32 %r1, %r0, 1;
            setp.ne.u32 %p1, %r1, 0;
            add.u64 %d12, %local, 4;
            selp.b64 %d11, %shared, %d12, %p1;
            ld.u32 %r22, [%d11];
            st.u32 [%d1], %r22;
            """,
            extra=".shared .align 4 .b8 tile2[128];\n.local .align 8 .b8 stack[8];\n",
        ),
        entry(
            "local",
            """
            .reg .b64 %local;
            mov.u64 %local, stack;
            mad.lo.u64 %d0, %d10, 4, %d0;
            mad.lo.u64 %d1, %d10, 4, %d1;
            ld.global.u32 %r20, [%d0];
            st.local.u8 [stack], 1;
            st.local.u32 [%local+4], %r20;
            ld.local.u32 %r21, [stack+4];
            st.global.u32 [%d1], %r21;
            """,
            extra=".local .align 4 .b8 stack[8];\n",
        ),
        entry(
            "constant",
            """
            .reg .b64 %c;
            mov.u64 %c, table;
            mad.lo.u64 %c, %d10, 4, %c;
            ld.const.u32 %r20, [%c];
            ld.const.u32 %r21, [table+8];
            add.u32 %r20, %r20, %r21;
            mad.lo.u64 %d1, %d10, 4, %d1;
            st.global.u32 [%d1], %r20;
            """,
        ),
        entry("past_shared", "st.shared.u32 [tile3+128], 1;", extra=".shared .align 4 .b8 tile3[128];\n"),
        entry("before_shared", "st.shared.u32 [tile3+-4], 1;", extra=".shared .align 4 .b8 tile3[128];\n"),
        entry("unwritten_shared", "ld.shared.u32 %r1, [tile3];", extra=".shared .align 4 .b8 tile3[128];\n"),
        entry("unwritten_local", "ld.local.u32 %r1, [stack];", extra=".local .align 4 .b8 stack[8];\n"),
        entry("past_local", "mov.u64 %d11, stack;\nst.local.u32 [%d11+8], 1;", extra=".local .align 4 .b8 stack[8];\n"),
        entry(
            "to_constant",
            """
            mov.u64 %d11, table;
            cvta.const.u64 %d11, %d11;
            st.u32 [%d11], 1;
            """,
        ),
        entry(
            "collide",
            """
            and.b32 %r1, %r0, 1;
            shl.b32 %r1, %r1, 2;
            mov.u32 %r2, tile3;
            add.u32 %r1, %r1, %r2;
            st.shared.u32 [%r1], %r0;
            """,
            extra=".shared .align 4 .b8 tile3[128];\n",
        ),
        entry("agree", "st.shared.u32 [tile3], 7;", extra=".shared .align 4 .b8 tile3[128];\n"),
    ],
    globals_=f".const .align 4 .b32 table[32] = {{{', '.join(str(k * k) for k in range(32))}}};",
)


@pytest.mark.parametrize("checks", [True, False])
def test_every_space(checks: bool) -> None:
    loaded = emulator.Gpu(checks=checks).load(SPACES)
    wide = random_bytes(LANES * 8).view(np.uint64)
    out64 = np.zeros_like(wide)
    loaded["shared"](1, LANES, wide, out64)
    assert_array_equal(out64, wide[::-1])

    source = random_bytes(LANES * 4).view(np.uint32)
    out = np.zeros_like(source)
    loaded["generic"](1, LANES, source, out)
    assert_array_equal(out, source + (np.arange(LANES, dtype=np.uint32) + 1) % 2)
    loaded["local"](1, LANES, source, out)
    assert_array_equal(out, source)
    loaded["constant"](1, LANES, source, out)
    assert_array_equal(out, np.arange(LANES) ** 2 + 4)


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("past_shared", "out_of_bounds", True),
        ("before_shared", "out_of_bounds", True),
        ("unwritten_shared", "uninitialised_shared", True),
        ("unwritten_local", "uninitialised_local", True),
        ("past_local", "out_of_bounds", True),
        ("to_constant", "out_of_bounds", True),
        ("collide", "shared_race", True),
    ],
)
def test_faults_by_space(name: str, kind: str, address: bool) -> None:
    loaded = emulator.Gpu().load(SPACES)
    data = np.zeros(LANES, np.uint32)
    with pytest.raises(emulator.Fault) as caught:
        loaded[name](1, LANES, data, data)
    assert fault_kind(caught) == kind
    assert (caught.value.address is not None) == address
    assert caught.value.kernel == name


def test_lanes_may_write_the_same_value_to_shared_memory() -> None:
    data = np.zeros(LANES, np.uint32)
    emulator.Gpu().load(SPACES)["agree"](1, LANES, data, data)


EDGES = module(
    [
        entry(f"{what}_{bits}", f"mad.lo.u64 %d11, %d2, 1, %d0;\n{body}", pointers=3)
        for bits in (8, 16, 32, 64)
        for what, body in (
            ("read", f"ld.global.b{bits} %{REGISTER[max(bits, 16)]}20, [%d11];"),
            ("write", f"mov.b64 %d20, 1;\nst.global.b{bits} [%d11], %d20;"),
            ("generic", f"ld.b{bits} %{REGISTER[max(bits, 16)]}20, [%d11];"),
        )
    ]
    + [
        entry("v4", "mad.lo.u64 %d11, %d2, 1, %d0;\nld.global.v4.u32 {%r20,%r21,%r22,%r23}, [%d11];", pointers=3),
        entry("quad", "mad.lo.u64 %d11, %d2, 1, %d0;\nld.global.b128 %q1, [%d11];", pointers=3),
    ]
)
EDGE_NAMES = [f"{what}_{bits}" for what in ("read", "write", "generic") for bits in (8, 16, 32, 64)] + ["v4", "quad"]


@pytest.mark.parametrize("name", EDGE_NAMES)
def test_bounds_and_alignment(name: str) -> None:
    size = 16 if name in ("v4", "quad") else int(name.split("_")[1]) // 8
    total = 64

    def run(offset: int) -> None:
        # A GPU of its own, so that there is no other array to hit, not even a freed one.
        gpu = emulator.Gpu()
        kernel = gpu.load(EDGES)[name]
        kernel(1, 1, gpu.zeros(total, np.uint8), None, offset % (1 << 64) - (1 << 64) * (offset % (1 << 64) >= 1 << 63))

    run(0)
    run(total - size)
    for offset in (-size, total, total + 8 * size, -4096):
        with pytest.raises(emulator.Fault) as caught:
            run(offset)
        assert fault_kind(caught) == "out_of_bounds", offset
    for step in [1 << k for k in range(6) if 1 << k < size]:
        with pytest.raises(emulator.Fault) as caught:
            run(step)
        assert fault_kind(caught) == "misaligned", step


def test_null_and_wild_pointers() -> None:
    kernel = emulator.Gpu().load(EDGES)["read_32"]
    for pointer in (0, 4096, 0x7F00_0000_0000_0000, -8):
        with pytest.raises(emulator.Fault) as caught:
            kernel(1, 1, pointer, None, 0)
        assert fault_kind(caught) == "out_of_bounds"


def test_reading_what_nothing_wrote() -> None:
    gpu = emulator.Gpu()
    kernel = gpu.load(EDGES)["read_32"]
    fresh = gpu.empty(8, np.uint32)
    with pytest.raises(emulator.Fault) as caught:
        kernel(1, 1, fresh, None, 4)
    assert fault_kind(caught) == "uninitialised_global"
    gpu.load(EDGES)["write_32"](1, 1, fresh, None, 4)
    kernel(1, 1, fresh, None, 4)


def test_parameters_by_name_and_by_register() -> None:
    text = module(
        """
        .visible .entry k(.param .u64 out, .param .align 8 .b8 box[24], .param .f32 scale, .param .s8 small) {
          .reg .b64 %d<9>; .reg .b32 %r<9>; .reg .f32 %f<3>;
          ld.param.u64 %d0, [out];
          ld.param.v2.u32 {%r0, %r1}, [box+8];
          ld.param.u16 %r2, [box+2];
          ld.param.f32 %f0, [scale];
          ld.param.s8 %r3, [small];
          mov.b64 %d1, box;
          ld.param.u64 %d2, [%d1+16];
          cvta.param.u64 %d3, %d1;
          ld.u32 %r4, [%d3+4];
          st.global.v2.u32 [%d0], {%r0, %r1};
          st.global.u32 [%d0+8], %r2;
          st.global.f32 [%d0+12], %f0;
          st.global.s32 [%d0+16], %r3;
          st.global.u32 [%d0+20], %r4;
          st.global.u64 [%d0+24], %d2;
          ret;
        }
        """
    )
    box = random_bytes(24)
    out = np.zeros(8, np.uint32)
    emulator.Gpu().load(text)["k"](1, 1, out, box.tobytes(), 2.5, -7)
    words = box.view(np.uint32)
    assert_array_equal(out[:2], words[2:4])
    assert out[2] == box.view(np.uint16)[1]
    assert out[3:4].view(np.float32)[0] == 2.5
    assert out[4:5].view(np.int32)[0] == -7
    assert out[5] == words[1]
    assert_array_equal(out[6:], words[4:])


@pytest.mark.parametrize(
    "line",
    [
        "ld.global.f16 %h1, [%d0];",
        "ld.global.v3.b32 {%r1, %r2, %r3}, [%d0];",
        "ld.global.v2.b32 {%r1, %r2, %r3}, [%d0];",
        "ld.global.b32 %h1, [%d0];",
        "ld.global.sideways.b32 %r1, [%d0];",
        "ld.release.gpu.global.b32 %r1, [%d0];",
        "st.acquire.gpu.global.b32 [%d0], %r0;",
        "st.const.b32 [%d0], %r0;",
        "st.bulk.weak.shared::cta [%d0], 8, 0;",
    ],
)
def test_unknown_forms_are_refused(line: str) -> None:
    text = f".version 9.0\n.target sm_90a\n.address_size 64\n{entry('k', line)}"
    data = np.zeros(LANES, np.uint32)
    with pytest.raises((emulator.Fault, ValueError)) as caught:
        emulator.Gpu().load(text)["k"](1, 1, data, data)
    if isinstance(caught.value, emulator.Fault):
        assert fault_kind(caught) in ("unknown_instruction", "unsupported")
