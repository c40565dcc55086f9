"""shfl, vote, match, redux, elect, activemask, bar.warp: against plain Python, with all kinds of member masks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.memory.ptx_text import entry, fault_kind, module

LANES = 32
FULL = 0xFFFFFFFF
LANE = np.arange(LANES, dtype=np.uint32)

# Lane t has a in %r20, b in %r21, c in %r22, its member mask in %r23, and leaves two results in %r24 and %r25.
PROLOGUE = """
mad.lo.u64 %d0, %d10, 16, %d0;
mad.lo.u64 %d1, %d10, 8, %d1;
ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d0];
mov.u32 %r24, 0;
mov.u32 %r25, 0;
setp.ne.u32 %p2, %r20, 0;
cvt.u64.u32 %d20, %r20;
shl.b64 %d20, %d20, 32;
setp.eq.u32 %p3, %r23, 0;
@%p3 bra END;
"""
EPILOGUE = """
END:
st.global.v2.u32 [%d1], {%r24, %r25};
"""
PREDICATE = "selp.u32 %r25, 1, 0, %p1;"
BODIES = {
    **{
        f"shfl_{mode}": f"shfl.sync.{mode}.b32 %r24|%p1, %r20, %r21, %r22, %r23;\n{PREDICATE}"
        for mode in ("up", "down", "bfly", "idx")
    },
    **{f"vote_{mode}": f"vote.sync.{mode}.pred %p1, %p2, %r23;\n{PREDICATE}" for mode in ("any", "all", "uni")},
    "vote_not_all": f"vote.sync.all.pred %p1, !%p2, %r23;\n{PREDICATE}",
    "ballot": "vote.sync.ballot.b32 %r24, %p2, %r23;",
    "match_any_32": "match.any.sync.b32 %r24, %r20, %r23;",
    "match_any_64": "match.any.sync.b64 %r24, %d20, %r23;",
    "match_all_32": f"match.all.sync.b32 %r24|%p1, %r20, %r23;\n{PREDICATE}",
    "match_all_64": f"match.all.sync.b64 %r24|%p1, %d20, %r23;\n{PREDICATE}",
    **{
        f"redux_{op}_{kind}": f"redux.sync.{op}.{kind} %r24, %r20, %r23;"
        for op in ("add", "min", "max")
        for kind in ("u32", "s32")
    },
    **{f"redux_{op}_b32": f"redux.sync.{op}.b32 %r24, %r20, %r23;" for op in ("and", "or", "xor")},
    "elect": f"elect.sync %r24|%p1, %r23;\n{PREDICATE}",
    "elect_sink": f"elect.sync _|%p1, %r23;\n{PREDICATE}",
    "bar_warp": "bar.warp.sync %r23;",
}


@pytest.fixture(scope="module")
def kernels() -> str:
    return module(entry(name, PROLOGUE + body + EPILOGUE) for name, body in BODIES.items())


def run(
    kernels: str, name: str, a: Any, b: Any, c: Any, members: Any, *, seed: int = 0, checks: bool = True
) -> np.ndarray:
    data = np.stack([np.broadcast_to(np.asarray(x, np.uint32), LANES) for x in (a, b, c, members)], 1).copy()
    out = np.zeros((LANES, 2), np.uint32)
    emulator.Gpu(checks=checks).load(kernels)[name](1, LANES, data, out)
    return out


# Members of each lane: all; halves; eights; scattered sets; one lane outside (its mask is 0, so that it stays away).
MEMBERSHIPS = {
    "all": np.full(LANES, FULL, np.uint32),
    "halves": np.where(LANE < 16, 0xFFFF, 0xFFFF0000).astype(np.uint32),
    "eights": (np.uint32(0xFF) << (LANE & 24)).astype(np.uint32),
    "even_odd": np.where(LANE % 2 == 0, 0x55555555, 0xAAAAAAAA).astype(np.uint32),
    "some": np.where((0x00F0FF01 >> LANE) & 1 == 1, 0x00F0FF01, 0).astype(np.uint32),
}


def members_of(membership: np.ndarray, lane: int) -> list[int]:
    return [k for k in range(LANES) if membership[lane] >> k & 1]


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane that is read, and whether it is in range: after the pseudo-code of the PTX manual."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    largest = (lane & segment) | (clamp & ~segment & 31)
    smallest = lane & segment
    if mode == "up":
        j, inside = lane - b, lane - b >= largest
    elif mode == "down":
        j, inside = lane + b, lane + b <= largest
    elif mode == "bfly":
        j, inside = lane ^ b, lane ^ b <= largest
    else:
        j = smallest | (b & ~segment & 31)
        inside = j <= largest
    return (j, True) if inside else (lane, False)


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(kernels: str, mode: str, width: int, checks: bool) -> None:
    random = np.random.default_rng(width)
    a = random.integers(0, 1 << 32, LANES, np.uint32)
    c = ((32 - width) << 8) | (0 if mode == "up" else 31)
    for b in (*range(0, 33, 3), random.integers(0, 64, LANES)):
        out = run(kernels, f"shfl_{mode}", a, b, c, FULL, checks=checks)
        distances = np.broadcast_to(b, LANES)
        for lane in range(LANES):
            source, inside = shuffled(mode, lane, int(distances[lane]), c)
            assert (out[lane, 0], out[lane, 1]) == (a[source], inside), (mode, width, b, lane)


@pytest.mark.parametrize("membership", ["halves", "eights"])
def test_shuffles_of_tiles(kernels: str, membership: str) -> None:
    members = MEMBERSHIPS[membership]
    size = {"halves": 16, "eights": 8}[membership]
    out = run(kernels, "shfl_bfly", LANE * 3, 1, ((32 - size) << 8) | 31, members)
    assert_array_equal(out[:, 0], (LANE ^ 1) * 3)


FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda x, y: (x + y) & FULL,
    "min": min,
    "max": max,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
}


def reduced(name: str, values: list[int]) -> int:
    _, operation, kind = name.split("_")
    if kind == "s32" and operation != "add":
        values = [v - (1 << 32) if v >> 31 else v for v in values]
    return functools.reduce(FUNCTIONS[operation], values) & FULL


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("name", [n for n in BODIES if n.startswith("redux")])
def test_reductions(kernels: str, name: str, membership: str) -> None:
    members = MEMBERSHIPS[membership]
    a = np.random.default_rng(1).integers(0, 1 << 32, LANES, np.uint32)
    out = run(kernels, name, a, 0, 0, members)
    for lane in range(LANES):
        want = reduced(name, [int(a[k]) for k in members_of(members, lane)]) if members[lane] else 0
        assert out[lane, 0] == want


@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_votes(kernels: str, membership: str) -> None:
    members = MEMBERSHIPS[membership]
    random = np.random.default_rng(2)
    for a in (np.zeros(LANES), np.ones(LANES), LANE == 5, LANE != 20, random.integers(0, 2, LANES)):
        results = {name: run(kernels, name, a, 0, 0, members) for name in BODIES if name.startswith(("vote", "ballot"))}
        for lane in range(LANES):
            if not members[lane]:
                continue
            yes = [bool(a[k]) for k in members_of(members, lane)]
            assert results["vote_any"][lane, 1] == any(yes)
            assert results["vote_all"][lane, 1] == all(yes)
            assert results["vote_uni"][lane, 1] == (len(set(yes)) == 1)
            assert results["vote_not_all"][lane, 1] == (not any(yes))
            assert results["ballot"][lane, 0] == sum(1 << k for k in members_of(members, lane) if a[k])


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("bits", [32, 64])
def test_matches(kernels: str, bits: int, membership: str) -> None:
    members = MEMBERSHIPS[membership]
    for a in (np.zeros(LANES, int), np.random.default_rng(3).integers(0, 4, LANES), LANE):
        some, every = (run(kernels, f"match_{mode}_{bits}", a, 0, 0, members) for mode in ("any", "all"))
        for lane in range(LANES):
            if not members[lane]:
                continue
            fellows = members_of(members, lane)
            assert some[lane, 0] == sum(1 << k for k in fellows if a[k] == a[lane])
            same = len({int(a[k]) for k in fellows}) == 1
            assert tuple(every[lane]) == ((members[lane] if same else 0), same)


@pytest.mark.parametrize("membership", MEMBERSHIPS)
def test_elect_chooses_one_lane_of_each_set(kernels: str, membership: str) -> None:
    members = MEMBERSHIPS[membership]
    out = run(kernels, "elect", 0, 0, 0, members)
    for lane in range(LANES):
        if members[lane]:
            fellows = members_of(members, lane)
            leader = int(out[lane, 0])
            assert leader in fellows
            assert [int(out[k, 0]) for k in fellows] == [leader] * len(fellows)
            assert [int(out[k, 1]) for k in fellows] == [int(k == leader) for k in fellows]
    assert_array_equal(run(kernels, "elect_sink", 0, 0, 0, members)[:, 1], out[:, 1])


@pytest.mark.parametrize("checks", [True, False])
def test_warp_barriers_of_sets(kernels: str, checks: bool) -> None:
    for members in MEMBERSHIPS.values():
        run(kernels, "bar_warp", 0, 0, 0, members, checks=checks)


@pytest.mark.parametrize("name", [n for n in BODIES if n != "bar_warp"])
def test_a_lane_must_be_its_own_member(kernels: str, name: str) -> None:
    with pytest.raises(emulator.Fault) as caught:
        run(kernels, name, 0, 0, 31, np.where(LANE == 9, FULL & ~(1 << 9), FULL))
    assert fault_kind(caught) == "bad_argument"
    assert caught.value.lane == 9


def test_members_must_agree(kernels: str) -> None:
    with pytest.raises(emulator.Fault) as caught:
        run(kernels, "ballot", 1, 0, 0, np.where(LANE < 8, 0xFFFF, FULL))
    assert fault_kind(caught) == "divergent_collective"


def test_a_member_that_never_comes() -> None:
    # Lane 3 goes past the instruction, and the others wait for it.
    members = np.where(LANE == 3, 0, FULL)
    data = np.stack([LANE, LANE, LANE, members.astype(np.uint32)], 1).copy()
    text = module(entry("k", PROLOGUE + "vote.sync.any.pred %p1, %p2, %r23;\n" + EPILOGUE + "SPIN: bra SPIN;"))
    with pytest.raises(emulator.Fault):
        emulator.Gpu(hang_limit=100_000).load(text)["k"](1, LANES, data, np.zeros((LANES, 2), np.uint32))


def test_reading_a_lane_that_is_not_a_member(kernels: str) -> None:
    with pytest.raises(emulator.Fault, match="reads lane 20, which is not in the member mask") as caught:
        run(kernels, "shfl_idx", 0, 20, 31, MEMBERSHIPS["halves"])
    assert fault_kind(caught) == "divergent_collective"
    assert caught.value.lane == 0


PARTIAL = module(
    [
        entry(
            "sum",
            """
            shfl.sync.down.b32 %r20, %r0, 8, 31, -1;
            st.global.u32 [%d1], %r20;
            """,
        ),
        entry(
            "ballot",
            """
            setp.ge.u32 %p1, %r0, 0;
            vote.sync.ballot.b32 %r20, %p1, 0xffffffff;
            activemask.b32 %r21;
            redux.sync.add.u32 %r22, %r0, 0xffffffff;
            mad.lo.u64 %d1, %d10, 16, %d1;
            st.global.v4.u32 [%d1], {%r20, %r21, %r22, 0};
            """,
        ),
        entry(
            "after_exit",
            """
            setp.lt.u32 %p1, %r0, 12;
            @%p1 exit;
            setp.ge.u32 %p1, %r0, 0;
            vote.sync.ballot.b32 %r20, %p1, 0xffffffff;
            bar.warp.sync 0xffffffff;
            mad.lo.u64 %d1, %d10, 4, %d1;
            st.global.u32 [%d1], %r20;
            """,
        ),
        entry(
            "read_exited",
            """
            setp.lt.u32 %p1, %r0, 12;
            @%p1 exit;
            shfl.sync.idx.b32 %r20, %r0, 3, 31, -1;
            """,
        ),
        entry(
            "active",
            """
            setp.lt.u32 %p1, %r0, 7;
            mov.u32 %r20, 0;
            @%p1 activemask.b32 %r20;
            @%p1 bra LOW;
            activemask.b32 %r20;
            LOW:
            mad.lo.u64 %d1, %d10, 4, %d1;
            st.global.u32 [%d1], %r20;
            """,
        ),
        entry(
            "two_places",
            """
            setp.lt.u32 %p1, %r0, 7;
            @%p1 bra LOW;
            bar.warp.sync 0xffffffff;
            bra END;
            LOW:
            bar.warp.sync 0xffffffff;
            END:
            """,
        ),
    ]
)


def test_a_warp_of_fewer_lanes() -> None:
    out = np.zeros((24, 4), np.uint32)
    loaded = emulator.Gpu().load(PARTIAL)
    loaded["ballot"](1, 24, None, out)
    assert_array_equal(out[:, 0], np.full(24, 0xFFFFFF))
    assert_array_equal(out[:, 1], np.full(24, 0xFFFFFF))
    assert_array_equal(out[:, 2], np.full(24, 23 * 12))
    with pytest.raises(emulator.Fault, match="lane 16 reads lane 24, which does not exist"):
        loaded["sum"](1, 24, None, out)


def test_exited_lanes_are_not_waited_for() -> None:
    out = np.zeros(LANES, np.uint32)
    loaded = emulator.Gpu().load(PARTIAL)
    loaded["after_exit"](1, LANES, None, out)
    assert_array_equal(out, np.where(LANE < 12, 0, 0xFFFFF000))
    with pytest.raises(emulator.Fault, match="reads lane 3, which has exited"):
        loaded["read_exited"](1, LANES, None, out)


def test_activemask() -> None:
    out = np.zeros(LANES, np.uint32)
    emulator.Gpu().load(PARTIAL)["active"](1, LANES, None, out)
    assert_array_equal(out, np.where(LANE < 7, 0x7F, 0xFFFFFF80))


@pytest.mark.parametrize("checks", [True, False])
def test_lanes_meet_at_different_warp_barriers(checks: bool) -> None:
    for seed in range(4):
        emulator.Gpu(seed=seed, checks=checks).load(PARTIAL)["two_places"](1, LANES, None, None)


ORDER = module(
    entry(
        name,
        f"""
        mov.u32 %r1, tile;
        mad.lo.u32 %r2, %r0, 4, %r1;
        st.shared.u32 [%r2], %r0;
        {barrier}
        xor.b32 %r3, %r0, 1;
        mad.lo.u32 %r3, %r3, 4, %r1;
        ld.shared.u32 %r4, [%r3];
        """,
        extra=".shared .align 4 .b8 tile[128];\n",
    )
    for name, barrier in (
        ("none", ""),
        ("warp", "bar.warp.sync 0xffffffff;"),
        ("pairs", "and.b32 %r5, %r0, 30;\nshl.b32 %r5, 3, %r5;\nbar.warp.sync %r5;"),
        ("shuffle", "shfl.sync.idx.b32 %r9, %r0, 0, 31, -1;"),
    )
)


def test_only_warp_barriers_order_memory() -> None:
    loaded = emulator.Gpu().load(ORDER)
    loaded["warp"](1, LANES, None, None)
    loaded["pairs"](1, LANES, None, None)
    for name in ("none", "shuffle"):
        with pytest.raises(emulator.Fault) as caught:
            loaded[name](1, LANES, None, None)
        assert fault_kind(caught) == "shared_race"


COOPERATIVE = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
template <class Tile>
__device__ int sum(Tile tile, int value) {
  for (int step = tile.size() / 2; step > 0; step /= 2) value += tile.shfl_xor(value, step);
  tile.sync();
  return value;
}
extern "C" __global__ void tiles(const int* in, int* out) {
  auto block = cg::this_thread_block();
  int t = threadIdx.x, n = blockDim.x;
  out[t] = sum(cg::tiled_partition<32>(block), in[t]);
  out[n + t] = sum(cg::tiled_partition<16>(block), in[t]);
  out[2 * n + t] = sum(cg::tiled_partition<4>(block), in[t]);
  out[3 * n + t] = cg::reduce(cg::tiled_partition<8>(block), in[t], cg::plus<int>());
  if (in[t] % 3 == 0) {
    auto active = cg::coalesced_threads();
    out[4 * n + t] = active.size() * 100 + active.thread_rank();
    out[5 * n + t] = active.shfl(in[t], 0);
  }
}
"""


@pytest.mark.skipif(emulator.nvcc() is None, reason="no nvcc")
def test_cooperative_groups() -> None:
    n = 64
    values = np.random.default_rng(4).integers(-100, 100, n).astype(np.int32)
    for seed in range(3):
        out = np.zeros((6, n), np.int32)
        emulator.Gpu(seed=seed).load(emulator.compile_cuda(COOPERATIVE, "sm_90a"))["tiles"](1, n, values, out)
        for row, size in ((0, 32), (1, 16), (2, 4), (3, 8)):
            assert_array_equal(out[row], np.repeat(values.reshape(-1, size).sum(1), size))
        # Which lanes are together is up to the warp; that they agree is not.
        chosen = np.flatnonzero(values % 3 == 0)
        assert (out[4, chosen] >= 100).all()
        assert set(out[5, chosen]) <= set(values[chosen])
