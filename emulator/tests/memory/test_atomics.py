"""atom and red: every operation and type against NumPy, vectors, order and contention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import emulator
from emulator.tests.memory.ptx_text import entry, fault_kind, module

LANES = 32
REGISTER = {16: "h", 32: "r", 64: "d"}
TYPES = {
    name: np.dtype(full) for name, full in (("u32", "uint32"), ("s32", "int32"), ("u64", "uint64"), ("s64", "int64"))
}
TYPES |= {"b32": TYPES["u32"], "b64": TYPES["u64"]}


def increment(old: Any, b: Any) -> Any:
    return 0 if old >= b else old + 1


def decrement(old: Any, b: Any) -> Any:
    return b if old == 0 or old > b else old - 1


FUNCTIONS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "add": ("u32 s32 u64", np.add),
    "min": ("u32 s32 u64 s64", np.minimum),
    "max": ("u32 s32 u64 s64", np.maximum),
    "inc": ("u32", increment),
    "dec": ("u32", decrement),
    "and": ("b32 b64", np.bitwise_and),
    "or": ("b32 b64", np.bitwise_or),
    "xor": ("b32 b64", np.bitwise_xor),
    "exch": ("b32 b64", lambda old, b: b),
}
INTEGER = [(operation, kind) for operation, (kinds, _) in FUNCTIONS.items() for kind in kinds.split()]


def atomic_entry(name: str, instruction: str, bits: int, *, space: str = "global", result: bool = True) -> str:
    """Lane t: p2[t] = operation on p0[t] with p1[t]; in shared memory on a copy of p0, copied back at the end."""
    size, register = bits // 8, REGISTER[max(bits, 16)]
    body = [
        f"mad.lo.u64 %d0, %d10, {size}, %d0;",
        f"mad.lo.u64 %d1, %d10, {size}, %d1;",
        f"mad.lo.u64 %d2, %d10, {size}, %d2;",
        f"ld.global.b{bits} %{register}20, [%d1];",
    ]
    address, extra = "%d0", ""
    if space != "global":
        extra = f".shared .align 16 .b8 {name}_cells[512];\n"
        body += [f"mov.u64 %d11, {name}_cells;", f"mad.lo.u64 %d11, %d10, {size}, %d11;"]
        body += [f"ld.global.b{bits} %{register}21, [%d0];", f"st.shared.b{bits} [%d11], %{register}21;"]
        address = "%d11"
        if space == "generic":
            body += ["cvta.shared.u64 %d12, %d11;"]
            address = "%d12"
    destination = f"%{register}22, " if result else ""
    body.append(f"{instruction} {destination}[{address}], %{register}20;")
    if result:
        body.append(f"st.global.b{bits} [%d2], %{register}22;")
    if space != "global":
        body += [f"ld.shared.b{bits} %{register}21, [%d11];", f"st.global.b{bits} [%d0], %{register}21;"]
    return entry(name, "\n".join(body), pointers=3, extra=extra)


@pytest.fixture(scope="module")
def integer_module() -> str:
    entries = []
    for operation, kind in INTEGER:
        bits = int(kind[1:])
        for space in ("global", "shared", "generic"):
            named = "" if space == "generic" else f".{space}"
            entries.append(
                atomic_entry(f"atom_{space}_{operation}_{kind}", f"atom{named}.{operation}.{kind}", bits, space=space)
            )
            if operation != "exch":
                instruction = f"red{named}.{operation}.{kind}"
                entries.append(
                    atomic_entry(f"red_{space}_{operation}_{kind}", instruction, bits, space=space, result=False)
                )
    return module(entries)


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize(("operation", "kind"), INTEGER)
def test_integers_in_every_space(integer_module: str, operation: str, kind: str, space: str) -> None:
    dtype, function = TYPES[kind], FUNCTIONS[operation][1]
    random = np.random.default_rng(1)
    cells = random.integers(0, 256, LANES * dtype.itemsize, np.uint8).view(dtype)
    values = random.integers(0, 256, LANES * dtype.itemsize, np.uint8).view(dtype)
    if operation in ("inc", "dec"):
        cells[:8], values[:8] = [0, 1, 5, 6, 7, 0, 9, 9], [3, 1, 6, 6, 6, 0, 9, 8]
    want = np.array([function(a, b) for a, b in zip(cells, values, strict=True)], dtype)
    loaded = emulator.Gpu().load(integer_module)

    now, old = cells.copy(), np.zeros_like(cells)
    loaded[f"atom_{space}_{operation}_{kind}"](1, LANES, now, values, old)
    assert_array_equal(now, want)
    assert_array_equal(old, cells)
    if operation != "exch":
        now = cells.copy()
        loaded[f"red_{space}_{operation}_{kind}"](1, LANES, now, values, None)
        assert_array_equal(now, want)


def test_compare_and_swap() -> None:
    entries = []
    for bits in (16, 32, 64):
        register, size = REGISTER[bits], bits // 8
        entries.append(
            entry(
                f"cas_{bits}",
                f"""
                mad.lo.u64 %d0, %d10, {size}, %d0;
                mad.lo.u64 %d1, %d10, {size}, %d1;
                mad.lo.u64 %d2, %d10, {size}, %d2;
                mad.lo.u64 %d3, %d10, {size}, %d3;
                ld.global.b{bits} %{register}20, [%d1];
                ld.global.b{bits} %{register}21, [%d2];
                atom.global.cas.b{bits} %{register}22, [%d0], %{register}20, %{register}21;
                st.global.b{bits} [%d3], %{register}22;
                """,
                pointers=4,
            )
        )
    entries.append(
        entry(
            "cas_128",
            """
            mad.lo.u64 %d0, %d10, 16, %d0;
            mad.lo.u64 %d1, %d10, 16, %d1;
            mad.lo.u64 %d2, %d10, 16, %d2;
            mad.lo.u64 %d3, %d10, 16, %d3;
            ld.global.b128 %q0, [%d1];
            ld.global.b128 %q1, [%d2];
            atom.global.cas.b128 %q2, [%d0], %q0, %q1;
            st.global.b128 [%d3], %q2;
            """,
            pointers=4,
        )
    )
    loaded = emulator.Gpu().load(module(entries))
    random = np.random.default_rng(2)
    for bits in (16, 32, 64, 128):
        cells, new = (random.integers(0, 256, (LANES, bits // 8), np.uint8) for _ in range(2))
        compare = cells.copy()
        compare[::3, -1] ^= 1
        now, old = cells.copy(), np.zeros_like(cells)
        # A 128-bit atomic wants 16-byte alignment, which gpu.array gives.
        gpu = loaded.gpu
        now = gpu.array(now)
        loaded[f"cas_{bits}"](1, LANES, now, gpu.array(compare), gpu.array(new), gpu.array(old))
        want = new.copy()
        want[::3] = cells[::3]
        assert_array_equal(now, want)


def test_exchange_of_128_bits() -> None:
    text = module(
        entry(
            "k",
            """
            mad.lo.u64 %d1, %d10, 16, %d1;
            ld.global.b128 %q0, [%d1];
            atom.global.exch.b128 %q1, [%d0], %q0;
            st.global.b128 [%d1], %q1;
            """,
        )
    )
    gpu = emulator.Gpu()
    cell = gpu.array(np.full(16, 255, np.uint8))
    values = gpu.array(np.repeat(np.arange(LANES, dtype=np.uint8), 16).reshape(LANES, 16))
    gpu.load(text)["k"](1, LANES, cell, values)
    # Each value went in once and came out once; one is still there. None is torn.
    seen = np.concatenate([values, cell[None]])
    assert_array_equal(seen, np.broadcast_to(seen[:, :1], seen.shape))
    assert sorted(seen[:, 0]) == [*range(LANES), 255]


def half_bits(values: Any, kind: str) -> np.ndarray:
    dtype = torch.float16 if kind.startswith("f16") else torch.bfloat16
    return torch.tensor(np.asarray(values, np.float32)).to(dtype).view(torch.int16).numpy().view(np.uint16)


def half_values(bits: np.ndarray, kind: str) -> torch.Tensor:
    dtype = torch.float16 if kind.startswith("f16") else torch.bfloat16
    return torch.from_numpy(bits.view(np.int16).copy()).view(dtype)


def test_float_add() -> None:
    loaded = emulator.Gpu().load(
        module(
            [
                atomic_entry("f32", "atom.global.add.f32", 32),
                atomic_entry("f32_shared", "red.shared.add.f32", 32, space="shared", result=False),
                atomic_entry("f64", "atom.global.add.f64", 64),
                atomic_entry("f16", "atom.global.add.noftz.f16", 16),
                atomic_entry("bf16", "atom.global.add.noftz.bf16", 16),
                atomic_entry("f16x2", "red.global.add.noftz.f16x2", 32, result=False),
                atomic_entry("bf16x2", "atom.add.noftz.bf16x2", 32),
            ]
        )
    )
    random = np.random.default_rng(3)
    tiny = np.float32(1e-40)
    a, b = (random.standard_normal(LANES).astype(np.float32) for _ in range(2))
    a[0], b[0] = tiny, tiny
    a[1], b[1] = np.inf, -np.inf
    a[2], b[2] = np.float32(1.2e-38), -np.float32(1.3e-38)
    now, old = a.copy(), np.zeros_like(a)
    loaded["f32"](1, LANES, now, b, old)
    with np.errstate(invalid="ignore"):
        want, unflushed = a + b, a + b
    want[0], want[2] = 0, -0.0
    assert_array_equal(now, want)
    assert np.signbit(now[2])
    assert now[1:2].view(np.uint32)[0] == 0x7FFFFFFF
    assert_array_equal(old, a)

    now = a.copy()
    loaded["f32_shared"](1, LANES, now, b, None)
    assert_array_equal(now, unflushed)

    x, y = (random.standard_normal(LANES) for _ in range(2))
    now, old = x.copy(), np.zeros_like(x)
    loaded["f64"](1, LANES, now, y, old)
    assert_array_equal(now, x + y)

    for kind in ("f16", "bf16", "f16x2", "bf16x2"):
        count = LANES * (2 if kind.endswith("x2") else 1)
        x, y = (
            half_bits(random.standard_normal(count) * 10.0 ** random.integers(-6, 4, count), kind) for _ in range(2)
        )
        now, old = x.copy(), np.zeros_like(x)
        loaded[kind](1, LANES, now, y, old)
        want = half_values(x, kind).float() + half_values(y, kind).float()
        assert torch.equal(half_values(now, kind), want.to(half_values(x, kind).dtype))


VECTORS = [
    *[("f32", "add", n) for n in (2, 4)],
    *[(kind, op, n) for kind in ("f16", "bf16") for op in ("add", "min", "max") for n in (2, 4, 8)],
    *[(kind, op, n) for kind in ("f16x2", "bf16x2") for op in ("add", "min", "max") for n in (2, 4)],
]


@pytest.fixture(scope="module")
def vector_module() -> str:
    entries = []
    for kind, operation, n in VECTORS:
        bits = 16 if kind in ("f16", "bf16") else 32
        register = "f" if kind == "f32" else REGISTER[bits]
        a, b = ("{" + ", ".join(f"%{register}{k + first}" for k in range(n)) + "}" for first in (10, 20))
        swapped = "{" + ", ".join(f"%{register}{20 + (k + 1) % n}" for k in range(n)) + "}"
        noftz = "" if kind == "f32" else ".noftz"
        load = "\n".join(f"ld.global.b{bits} %{register}{20 + k}, [%d1+{bits // 8 * k}];" for k in range(n))
        entries.append(
            entry(
                f"{kind}_{operation}_{n}",
                f"""
                mad.lo.u64 %d0, %d10, {bits * n // 8}, %d0;
                mad.lo.u64 %d1, %d10, {bits * n // 8}, %d1;
                {load}
                atom.global.{operation}{noftz}.v{n}.{kind} {a}, [%d0], {b};
                red.relaxed.gpu.global.{operation}{noftz}.v{n}.{kind} [%d0], {b};
                atom.global.{operation}{noftz}.v{n}.{kind} {swapped}, [%d0], {b};
                """,
            )
        )
    return module(entries)


@pytest.mark.parametrize(("kind", "operation", "n"), VECTORS)
def test_vectors(vector_module: str, kind: str, operation: str, n: int) -> None:
    random = np.random.default_rng(n)
    count = LANES * n * (2 if kind.endswith("x2") else 1)
    loaded = emulator.Gpu().load(vector_module)
    a, b = (np.round(random.standard_normal(count) * 4) for _ in range(2))
    if kind == "f32":
        now = loaded.gpu.array(a.astype(np.float32))
        loaded[f"{kind}_{operation}_{n}"](1, LANES, now, b.astype(np.float32))
        assert_array_equal(now, a + 3 * b)
        return
    a[0], b[1] = (np.nan, np.nan) if operation != "add" else (1, 1)
    now = loaded.gpu.array(half_bits(a, kind))
    loaded[f"{kind}_{operation}_{n}"](1, LANES, now, half_bits(b, kind))
    want = {"add": a + 3 * b, "min": np.fmin(a, b), "max": np.fmax(a, b)}[operation]
    assert_array_equal(half_values(now, kind).float().numpy(), want)


TURNS = module(
    [
        entry(
            "turns", "mad.lo.u64 %d1, %d10, 4, %d1;\natom.global.exch.b32 %r20, [%d0], %r0;\nst.global.u32 [%d1], %r20;"
        ),
        entry("sink", "atom.global.add.u32 _, [%d0], 3;"),
    ]
)


def turns(seed: int, checks: bool) -> list[int]:
    """The lanes in the order in which they changed one cell."""
    cell, old = np.full(1, 99, np.uint32), np.zeros(LANES, np.uint32)
    emulator.Gpu(seed=seed, checks=checks).load(TURNS)["turns"](1, LANES, cell, old)
    after = {int(before): lane for lane, before in enumerate(old)}
    order = [after[99]]
    while order[-1] in after:
        order.append(after[order[-1]])
    assert sorted(order) == list(range(LANES))
    assert cell[0] == order[-1]
    return order


def test_lanes_take_turns_in_any_order() -> None:
    assert turns(0, checks=False) == list(range(LANES))
    assert len({tuple(turns(seed, checks=True)) for seed in range(8)}) > 4


def test_result_may_be_dropped() -> None:
    cell = np.zeros(1, np.uint32)
    emulator.Gpu().load(TURNS)["sink"](2, 64, cell, None)
    assert cell[0] == 3 * 128


def test_contention_between_blocks() -> None:
    loop = """
    ld.relaxed.gpu.global.b{bits} %{r}20, [%d0+{at}];
    AGAIN{bits}:
    {add}
    atom.relaxed.gpu.global.cas.b{bits} %{r}22, [%d0+{at}], %{r}20, %{r}21;
    setp.ne.b{bits} %p1, %{r}22, %{r}20;
    mov.b{bits} %{r}20, %{r}22;
    @%p1 bra AGAIN{bits};
    """
    body = "atom.global.add.u32 %r20, [%d0], 1;\nred.global.add.f32 [%d0+4], 0f3F800000;\n"
    body += "red.global.add.u64 [%d0+8], 3;\nred.global.add.f64 [%d0+16], 0d3FE0000000000000;\n"
    body += loop.format(bits=16, r="h", at=24, add="add.u16 %h21, %h20, 1;")
    body += loop.format(bits=32, r="r", at=28, add="add.u32 %r21, %r20, 1;")
    body += loop.format(bits=64, r="d", at=32, add="add.u64 %d21, %d20, 1;")
    cells = np.zeros(64, np.uint8)
    gpu = emulator.Gpu(host_threads=2, seed=5)
    gpu.load(module(entry("k", body, pointers=1)))["k"](16, 64, cells)
    total = 16 * 64
    assert cells[0:4].view(np.uint32)[0] == total
    assert cells[4:8].view(np.float32)[0] == total
    assert cells[8:16].view(np.uint64)[0] == 3 * total
    assert cells[16:24].view(np.float64)[0] == total / 2
    assert cells[24:26].view(np.uint16)[0] == total
    assert cells[28:32].view(np.uint32)[0] == total
    assert cells[32:40].view(np.uint64)[0] == total


def test_a_lock_orders_what_it_guards() -> None:
    text = module(
        entry(
            "k",
            """
            setp.ne.u32 %p1, %r0, 0;
            @%p1 bra END;
            TRY:
            atom.acquire.gpu.global.cas.b32 %r20, [%d0], 0, 1;
            setp.ne.u32 %p2, %r20, 0;
            @%p2 bra TRY;
            ld.global.u32 %r21, [%d1];
            add.u32 %r21, %r21, 1;
            st.global.u32 [%d1], %r21;
            atom.release.gpu.global.exch.b32 %r22, [%d0], 0;
            END:
            """,
        )
    )
    for seed in range(4):
        lock, count = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
        emulator.Gpu(seed=seed, host_threads=2).load(text)["k"](20, 32, lock, count)
        assert count[0] == 20
        assert lock[0] == 0


def test_atomics_are_counted() -> None:
    launch = emulator.Gpu().load(TURNS)["sink"](2, 64, np.zeros(1, np.uint32), None)
    assert launch.counters.global_atomics == 128


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("atom.global.add.u32 %r1, [%d0+2], 1;", "misaligned"),
        ("red.global.add.u64 [%d0+128], 1;", "out_of_bounds"),
        ("red.global.add.u64 [%d0+-8], 1;", "out_of_bounds"),
        ("red.global.add.f32 [%d1], 0f3F800000;", "uninitialised_global"),
        ("atom.global.and.b128 %q1, [%d0], %q1;", "unknown_instruction"),
        ("atom.global.add.f16 %h1, [%d0], %h1;", "unknown_instruction"),
        ("atom.global.min.noftz.f16 %h1, [%d0], %h1;", "unknown_instruction"),
        ("atom.global.add.s64 %d1, [%d0], 1;", "unknown_instruction"),
        ("red.global.cas.b32 [%d0], %r0, %r0;", "unknown_instruction"),
        ("red.acquire.gpu.global.add.u32 [%d0], 1;", "unknown_instruction"),
        ("atom.shared.add.v2.f32 {%f1, %f2}, [%r0], {%f1, %f2};", "unknown_instruction"),
        ("atom.local.add.u32 %r1, [%r0], 1;", "unknown_instruction"),
        ("atom.global.sub.u32 %r1, [%d0], 1;", "unknown_instruction"),
    ],
)
def test_faults(line: str, kind: str) -> None:
    text = f".version 9.0\n.target sm_90a\n.address_size 64\n{entry('k', line)}"
    gpu = emulator.Gpu()
    with pytest.raises(emulator.Fault) as caught:
        gpu.load(text)["k"](1, 1, gpu.zeros(32, np.uint32), gpu.empty(1, np.float32))
    assert fault_kind(caught) == kind
