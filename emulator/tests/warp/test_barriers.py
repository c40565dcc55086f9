"""bar and barrier: named barriers, counts, reductions, exits, misuse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.memory.ptx_text import entry, fault_kind, module

TILE = ".shared .align 4 .b8 tile[4096];\n"
WRITE = "mov.u32 %r1, tile;\nmad.lo.u32 %r2, %r0, 4, %r1;\nst.shared.u32 [%r2], %r0;\n"
# Reads what the thread half a block away wrote.
READ = """
mov.u32 %r3, %ntid.x;
shr.u32 %r4, %r3, 1;
add.u32 %r4, %r4, %r0;
rem.u32 %r4, %r4, %r3;
mad.lo.u32 %r4, %r4, 4, %r1;
ld.shared.u32 %r5, [%r4];
mad.lo.u64 %d1, %d10, 4, %d1;
st.global.u32 [%d1], %r5;
"""
BARRIERS = {
    "none": "",
    "bar": "bar.sync 0;",
    "bar_cta": "bar.cta.sync 3;",
    "counted": "bar.sync 5, 256;",
    "by_register": "mov.u32 %r9, 7;\nmov.u32 %r10, 256;\nbarrier.sync %r9, %r10;",
    "barrier": "barrier.sync 15;",
    "barrier_aligned": "barrier.cta.sync.aligned 1;",
    "warp_only": "bar.warp.sync 0xffffffff;",
    "reduction": "setp.eq.u32 %p1, %r0, 0;\nbar.red.or.pred %p2, 0, %p1;",
}
EXCHANGE = module(entry(name, WRITE + text + READ, extra=TILE) for name, text in BARRIERS.items())


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("name", [n for n in BARRIERS if n not in ("none", "warp_only")])
def test_barriers_order_shared_memory(name: str, checks: bool) -> None:
    out = np.zeros(256, np.uint32)
    emulator.Gpu(checks=checks).load(EXCHANGE)[name](1, 256, None, out)
    assert_array_equal(out, (np.arange(256) + 128) % 256)


@pytest.mark.parametrize("name", ["none", "warp_only"])
@pytest.mark.parametrize("seed", range(4))
def test_missing_barriers_are_found(name: str, seed: int) -> None:
    with pytest.raises(emulator.Fault) as caught:
        emulator.Gpu(seed=seed).load(EXCHANGE)[name](1, 256, None, np.zeros(256, np.uint32))
    assert fault_kind(caught) in ("shared_race", "uninitialised_shared")


REDUCTIONS = module(
    entry(
        "k",
        """
        mad.lo.u64 %d0, %d10, 4, %d0;
        mad.lo.u64 %d1, %d10, 16, %d1;
        ld.global.u32 %r1, [%d0];
        setp.ne.u32 %p1, %r1, 0;
        bar.red.popc.u32 %r20, 0, %p1;
        bar.red.popc.u32 %r21, 0, !%p1;
        barrier.red.and.pred %p2, 1, 96, %p1;
        bar.red.or.pred %p3, 0, %p1;
        selp.u32 %r22, 1, 0, %p2;
        selp.u32 %r23, 1, 0, %p3;
        st.global.v4.u32 [%d1], {%r20, %r21, %r22, %r23};
        """,
    )
)


@pytest.mark.parametrize("seed", range(3))
def test_reductions(seed: int) -> None:
    loaded = emulator.Gpu(seed=seed).load(REDUCTIONS)
    random = np.random.default_rng(seed)
    for values in (np.zeros(96), np.ones(96), random.integers(0, 2, 96), np.arange(96) == 77, np.arange(96) != 5):
        values = np.asarray(values, np.uint32)
        out = np.zeros((96, 4), np.uint32)
        loaded["k"](1, 96, values, out)
        total = int(values.sum())
        assert_array_equal(out, np.broadcast_to([total, 96 - total, values.all(), values.any()], out.shape))


def test_blocks_of_odd_sizes() -> None:
    count = "setp.ge.u32 %p1, %r0, 0;\nbar.red.popc.u32 %r1, 0, %p1;\n"
    text = module(entry("k", count + "mad.lo.u64 %d1, %d10, 4, %d1;\nst.global.u32 [%d1], %r1;"))
    loaded = emulator.Gpu().load(text)
    for threads in (1, 31, 32, 33, 80, 1024):
        out = np.zeros(threads, np.uint32)
        loaded["k"](1, threads, None, out)
        assert_array_equal(out, np.full(threads, threads))


# Warps 0 and 1 produce, warps 2 and 3 consume, over two buffers, with a full and an empty barrier each.
PIPELINE = module(
    entry(
        "k",
        """
        .reg .b32 %step, %buffer, %full, %empty, %at, %sum;
        shr.u32 %r1, %r0, 6;
        and.b32 %r2, %r0, 63;
        setp.eq.u32 %p1, %r1, 0;
        mov.u32 %step, 0;
        mov.u32 %sum, 0;
        @!%p1 bra CONSUME;
        PRODUCE:
        and.b32 %buffer, %step, 1;
        add.u32 %full, %buffer, 1;
        add.u32 %empty, %buffer, 3;
        setp.lt.u32 %p2, %step, 2;
        @%p2 bra FREE;
        bar.sync %empty, 128;
        FREE:
        mad.lo.u32 %at, %buffer, 64, %r2;
        mov.u32 %r3, tile;
        mad.lo.u32 %at, %at, 4, %r3;
        add.u32 %r4, %step, %r2;
        st.shared.u32 [%at], %r4;
        bar.arrive %full, 128;
        add.u32 %step, %step, 1;
        setp.lt.u32 %p2, %step, 6;
        @%p2 bra PRODUCE;
        bra END;
        CONSUME:
        and.b32 %buffer, %step, 1;
        add.u32 %full, %buffer, 1;
        add.u32 %empty, %buffer, 3;
        bar.sync %full, 128;
        xor.b32 %r4, %r2, 63;
        mad.lo.u32 %at, %buffer, 64, %r4;
        mov.u32 %r3, tile;
        mad.lo.u32 %at, %at, 4, %r3;
        ld.shared.u32 %r5, [%at];
        mad.lo.u32 %sum, %sum, 3, %r5;
        setp.lt.u32 %p2, %step, 4;
        @!%p2 bra TAKEN;
        bar.arrive %empty, 128;
        TAKEN:
        add.u32 %step, %step, 1;
        setp.lt.u32 %p2, %step, 6;
        @%p2 bra CONSUME;
        cvt.u64.u32 %d11, %r2;
        mad.lo.u64 %d1, %d11, 4, %d1;
        st.global.u32 [%d1], %sum;
        END:
        """,
        extra=TILE,
    )
)


@pytest.mark.parametrize("seed", range(6))
def test_named_barriers_of_producers_and_consumers(seed: int) -> None:
    out = np.zeros(64, np.uint32)
    emulator.Gpu(seed=seed).load(PIPELINE)["k"](1, 128, None, out)
    want = np.zeros(64, np.uint32)
    for step in range(6):
        want = want * 3 + (63 - np.arange(64, dtype=np.uint32)) + np.uint32(step)
    assert_array_equal(out, want)


EXITS = module(
    [
        entry(
            "warps_exit",
            f"""
            setp.lt.u32 %p1, %r0, 64;
            @%p1 exit;
            {WRITE}
            bar.sync 0;
            """,
            extra=TILE,
        ),
        entry(
            "lanes_exit",
            f"""
            and.b32 %r1, %r0, 3;
            setp.eq.u32 %p1, %r1, 1;
            @%p1 exit;
            {WRITE}
            bar.sync 0;
            bar.sync 0;
            """,
            extra=TILE,
        ),
        entry(
            "exit_while_others_wait",
            """
            setp.ge.u32 %p1, %r0, 32;
            @%p1 bra WAIT;
            mov.u32 %r1, 0;
            SPIN:
            add.u32 %r1, %r1, 1;
            setp.lt.u32 %p2, %r1, 500;
            @%p2 bra SPIN;
            exit;
            WAIT:
            bar.sync 0;
            """,
        ),
    ]
)


@pytest.mark.parametrize("name", ["warps_exit", "lanes_exit", "exit_while_others_wait"])
@pytest.mark.parametrize("seed", range(3))
def test_exited_threads_count_as_arrived(name: str, seed: int) -> None:
    emulator.Gpu(seed=seed).load(EXITS)[name](2, 128, None, None)


HALF = "setp.lt.u32 %p1, %r0, 64;\n"
MISUSE = {
    "other_count": HALF + "@%p1 bra A;\nbar.sync 1, 128;\nbra E;\nA: bar.sync 1, 96;\nE:",
    "count_and_none": HALF + "@%p1 bra A;\nbar.sync 1;\nbra E;\nA: bar.sync 1, 96;\nE:",
    "red_and_sync": HALF + "@%p1 bra A;\nbar.sync 1;\nbra E;\nA: bar.red.popc.u32 %r1, 1, %p1;\nE:",
    "count_33": "mov.u32 %r1, 33;\nbarrier.sync 1, %r1;",
    "count_0": "mov.u32 %r1, 0;\nbar.sync 1, %r1;",
    "count_too_large": "bar.sync 1, 256;",
    "number_16": "mov.u32 %r1, 16;\nbar.sync %r1;",
    "too_many": "setp.lt.u32 %p1, %r0, 16;\n@%p1 barrier.arrive 1, 32;\nbar.warp.sync -1;\nbarrier.arrive 1, 32;",
    "half_a_warp": "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p1, %r1, 0;\n"
    "@%p1 bra A;\nbar.sync 0;\nbra E;\nA: bar.sync 0;\nE:",
    "numbers_differ": "and.b32 %r1, %r0, 1;\nbar.sync %r1;",
}


@pytest.fixture(scope="module")
def misuse() -> str:
    return module(entry(name, text) for name, text in MISUSE.items())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MISUSE)
def test_misuse(misuse: str, name: str, seed: int) -> None:
    with pytest.raises(emulator.Fault) as caught:
        emulator.Gpu(seed=seed).load(misuse)[name](1, 32 if name == "too_many" else 128, None, None)
    assert fault_kind(caught) == "barrier_misuse"


def test_a_barrier_that_never_completes() -> None:
    text = module(entry("k", "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra END;\nbar.sync 2, 128;\nEND:"))
    with pytest.raises(emulator.Fault, match="96 of 128 threads arrived") as caught:
        emulator.Gpu().load(text)["k"](1, 128, None, None)
    assert fault_kind(caught) == "deadlock"


def test_unaligned_barriers_take_diverged_lanes() -> None:
    text = module(
        entry(
            "k",
            """
            and.b32 %r1, %r0, 1;
            setp.eq.u32 %p1, %r1, 0;
            @%p1 bra EVEN;
            barrier.sync 1;
            bra END;
            EVEN:
            barrier.sync 1;
            END:
            """,
        )
    )
    emulator.Gpu().load(text)["k"](1, 64, None, None)


def test_barriers_are_counted() -> None:
    launch = emulator.Gpu().load(EXCHANGE)["bar"](1, 256, None, np.zeros(256, np.uint32))
    assert launch.counters.barriers == 8
