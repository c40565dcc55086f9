"""slot_positions and expert_histogram against a loop and the reference, on every backend."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.cases import CASES, Case
from tests.support.inputs import strided_variants
from tests.support.tolerance import assert_same_bits

raw = torch.ops.moe_ext

ORDERS = ("token", "choice")
PRIORITIES = ("none", "tokens", "slots")
BIG = 2**31 - 1
NAN, INF = float("nan"), float("inf")
IDS = torch.tensor([[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]], dtype=torch.int32)
MAX_PROBABILITY = torch.tensor([0.643914, 0.643914, 0.682791, 0.757313, 0.610296, 0.643914])


def by_loop(
    ids: list[list[int]],
    num_experts: int,
    order: str,
    priority: list[float] | list[list[float]] | None,
    group_size: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Visits slots one by one."""
    positions = [[-1] * len(row) for row in ids]
    counts = []
    for begin in range(0, len(ids), group_size):
        group = range(begin, min(begin + group_size, len(ids)))
        slots = [(t, k) for t in group for k in range(len(ids[t]))]

        def comes_at(slot: tuple[int, int]) -> tuple[float, ...]:
            t, k = slot
            value = 0.0 if priority is None else priority[t]
            value = value[k] if isinstance(value, list) else value
            late = math.inf if math.isnan(value) else -value
            by_slot = priority is not None and isinstance(priority[t], list)
            within = (k, t) if order == "choice" else (t, k)
            return (late, *within) if by_slot else (k, late, t) if order == "choice" else (late, t, k)

        own = [0] * num_experts
        for t, k in sorted(slots, key=comes_at):
            if 0 <= ids[t][k] < num_experts:
                positions[t][k] = own[ids[t][k]]
                own[ids[t][k]] += 1
        counts.append(own)
    return positions, counts


def draw_priority(kind: str, num_tokens: int, top_k: int, seed: int = 0, ties: bool = True) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    shape = {"none": None, "tokens": (num_tokens,), "slots": (num_tokens, top_k)}[kind]
    if shape is None:
        return None
    values = torch.randn(shape, generator=generator)
    return (values * 2).round() if ties else values


def assert_same_positions(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, first, second in zip(("positions", "counts"), actual, expected, strict=True):
        assert_same_bits(first, second, name)


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.5, 1e-40, -1e-40, INF, -INF, NAN, 3.0, 3.0000002])


@given(data=st.data())
def test_any_slots(backend: Backend, data: st.DataObject) -> None:
    num_experts, top_k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    ids = data.draw(st.lists(st.lists(st.integers(-2, 10) | st.just(BIG), min_size=top_k, max_size=top_k), max_size=12))
    order, kind = data.draw(st.sampled_from(ORDERS)), data.draw(st.sampled_from(PRIORITIES))
    group_size = data.draw(st.integers(1, 14))
    priority = None
    if kind != "none":
        row = VALUES if kind == "tokens" else st.lists(VALUES, min_size=top_k, max_size=top_k)
        priority = data.draw(st.lists(row, min_size=len(ids), max_size=len(ids)))
    shape = (len(ids),) if kind == "tokens" else (len(ids), top_k)
    given_priority = None if priority is None else backend.put(torch.tensor(priority).view(shape))
    given_ids = backend.put(torch.tensor(ids, dtype=torch.int64).view(-1, top_k))
    positions, counts = moe_ext.slot_positions(
        given_ids, num_experts, order=order, priority=given_priority, group_size=group_size
    )
    expected = by_loop(ids, num_experts, order, priority, group_size)
    assert (positions.tolist(), counts.tolist()) == expected
    assert moe_ext.expert_histogram(given_ids, num_experts, group_size=group_size).tolist() == expected[1]


@pytest.mark.parametrize("kind", PRIORITIES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, order: str, kind: str) -> None:
    ids, shape = case.topk_ids(0), case.shape
    priority = draw_priority(kind, shape.num_tokens, shape.top_k)
    for group_size in (None, max(shape.num_tokens // 3, 1)):
        expected = reference.slot_positions(ids, shape.num_experts, order, priority, group_size)
        given = backend.put(ids), shape.num_experts, order, backend.put(priority), group_size
        assert_same_positions(raw.slot_positions(*given), expected)
        assert_same_bits(raw.expert_histogram(given[0], shape.num_experts, group_size), expected[1], "counts")


@pytest.mark.parametrize("kind", PRIORITIES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "group_size"),
    [(9000, 8, 64, None), (9001, 2, 7, 100), (40000, 1, 3, 19000), (150, 4, 9500, 100), (33000, 1, 20, None)],
)
def test_many_slots(
    backend: Backend,
    torch_threads: int,
    num_tokens: int,
    top_k: int,
    num_experts: int,
    group_size: int | None,
    order: str,
    kind: str,
) -> None:
    """Enough for several ranges, which must come out as one."""
    ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k))
    priority = draw_priority(kind, num_tokens, top_k, ties=num_experts < 10)
    expected = reference.slot_positions(ids, num_experts, order, priority, group_size)
    given = backend.put(ids), num_experts, order, backend.put(priority), group_size
    assert_same_positions(raw.slot_positions(*given), expected)
    assert_same_bits(raw.expert_histogram(given[0], num_experts, group_size), expected[1], "counts")


@pytest.mark.parametrize("capacity", [0, 1, 3, 10**6])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_permute_drops_the_same_slots(backend: Backend, case: Case, order: str, capacity: int) -> None:
    ids, num_experts = backend.put(case.topk_ids(0)), case.shape.num_experts
    positions, counts = moe_ext.slot_positions(ids, num_experts, order=order)
    permutation = moe_ext.permute(ids, num_experts, capacity=capacity, drop_order=order)
    assert torch.equal((positions >= 0) & (positions < capacity), permutation.slot_to_row >= 0)
    assert torch.equal(counts[0].clamp(max=capacity), permutation.expert_offsets.diff())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": "choice"}, [[0, 3], [0, 0], [0, 2], [1, 1], [1, 3], [2, 4]]),
        ({"order": "token"}, [[0, 0], [1, 0], [0, 1], [2, 1], [2, 3], [3, 4]]),
        ({"priority": MAX_PROBABILITY}, [[1, 3], [0, 0], [0, 2], [0, 1], [2, 4], [1, 3]]),
    ],
    ids=["choice", "token", "batch_prioritized"],
)
def test_worked_example(backend: Backend, options: dict[str, object], expected: list[list[int]]) -> None:
    """Top-2 of six tokens over four experts; with two places each, five slots of twelve are left over."""
    positions, counts = moe_ext.slot_positions(backend.put(IDS), 4, **backend.put(options))
    assert counts.tolist() == [[5, 4, 2, 1]]
    assert positions.tolist() == expected
    assert int((positions >= 2).sum()) == 5


@pytest.mark.parametrize("kind", PRIORITIES)
def test_the_same_for_any_threads_and_order_of_blocks(backend: Backend, kind: str) -> None:
    ids = backend.put(torch.randint(-1, 6, (6000, 4), dtype=torch.int32))
    priority = backend.put(draw_priority(kind, 6000, 4))
    first = raw.slot_positions(ids, 6, "choice", priority)
    for _ in backend.variations():
        assert_same_positions(raw.slot_positions(ids, 6, "choice", priority), first)


def test_strides(backend: Backend) -> None:
    ids = backend.put(torch.randint(-1, 6, (17, 3), dtype=torch.int32))
    priority = backend.put(draw_priority("slots", 17, 3))
    expected = raw.slot_positions(ids, 5, "token", priority)
    for _, variant in strided_variants(ids):
        for _, values in strided_variants(priority):
            assert_same_positions(raw.slot_positions(variant, 5, "token", values), expected)


@pytest.mark.parametrize("group_size", [None, 1, 4])
@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_no_slots(backend: Backend, shape: tuple[int, int], group_size: int | None) -> None:
    ids = backend.put(torch.zeros(shape, dtype=torch.int32))
    num_groups = 1 if group_size is None else -(-shape[0] // group_size)
    for order in ORDERS:
        for priority in (None, torch.zeros(shape[0]), torch.zeros(shape)):
            positions, counts = raw.slot_positions(ids, 3, order, backend.put(priority), group_size)
            assert positions.shape == shape
            assert counts.tolist() == [[0, 0, 0]] * num_groups
            assert raw.expert_histogram(ids, 3, group_size).tolist() == counts.tolist()


def test_wrong_arguments_of_the_raw_op_are_errors(backend: Backend) -> None:
    ids, floats, short = backend.put((IDS, IDS.float(), torch.zeros(5)))
    for bad, message in (
        (lambda: raw.slot_positions(floats, 3), "topk_ids must be Int or Long"),
        (lambda: raw.slot_positions(ids, 0), "num_experts must be"),
        (lambda: raw.slot_positions(ids, 3, "score"), "order must be one of token, choice"),
        (lambda: raw.slot_positions(ids, 3, "token", short), "priority must have T = 6"),
        (lambda: raw.slot_positions(ids, 3, "token", floats[:, :1]), "priority must have K = 2"),
        (lambda: raw.slot_positions(ids, 3, "token", floats.double()), "priority must be Float"),
        (lambda: raw.slot_positions(ids, 3, "token", None, 0), "group_size must be at least 1"),
        (lambda: raw.expert_histogram(ids, 3, -1), "group_size must be at least 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()


def test_compiles() -> None:
    def both(ids: Tensor, priority: Tensor) -> tuple[Tensor, ...]:
        return (*moe_ext.slot_positions(ids, 5, priority=priority, group_size=4), moe_ext.expert_histogram(ids, 5))

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="eager")
    for num_tokens in (6, 9):
        ids, priority = torch.randint(-1, 5, (num_tokens, 2)), torch.rand(num_tokens)
        for actual, expected in zip(compiled(ids, priority), both(ids, priority), strict=True):
            assert torch.equal(actual, expected)
