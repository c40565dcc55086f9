"""permute and gather_rows against plain Python and the reference, on every backend."""

from contextlib import nullcontext

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
from tests.support.truth import check_against_truth

raw = torch.ops.moe_ext

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ID_DTYPES = (torch.int32, torch.int64)
BIG = 2**31 - 1
IDS = torch.zeros(4, 2, dtype=torch.int32)


def sorted_slots(ids: list[int], num_experts: int) -> tuple[list[int], list[int], list[int]]:
    """permute of flat ids, by sorting."""
    rows = sorted((expert, slot) for slot, expert in enumerate(ids) if 0 <= expert < num_experts)
    offsets = [sum(expert < e for expert, _ in rows) for e in range(num_experts + 1)]
    row_of = {slot: row for row, (_, slot) in enumerate(rows)}
    slots = [slot for _, slot in rows]
    return offsets, slots + [-1] * (len(ids) - len(slots)), [row_of.get(slot, -1) for slot in range(len(ids))]


def assert_same_permutation(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, first, second in zip(("expert_offsets", "row_to_slot", "slot_to_row"), actual, expected, strict=True):
        assert_same_bits(first, second, name)


@given(
    num_experts=st.integers(1, 12),
    top_k=st.integers(1, 5),
    ids=st.lists(st.integers(-2, 13) | st.sampled_from([BIG, -BIG - 1]), max_size=40),
    dtype=st.sampled_from(ID_DTYPES),
)
def test_any_ids(backend: Backend, num_experts: int, top_k: int, ids: list[int], dtype: torch.dtype) -> None:
    ids = ids[: len(ids) // top_k * top_k]
    given = backend.put(torch.tensor(ids, dtype=dtype).view(-1, top_k))
    offsets, row_to_slot, slot_to_row = raw.permute(given, num_experts)
    assert (offsets.tolist(), row_to_slot.tolist(), slot_to_row.flatten().tolist()) == sorted_slots(ids, num_experts)
    assert slot_to_row.shape == (len(ids) // top_k, top_k)


@pytest.mark.parametrize("dtype", ID_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    ids = case.topk_ids(0).to(dtype)
    expected = reference.permute(ids, case.shape.num_experts)
    assert_same_permutation(moe_ext.permute(backend.put(ids), case.shape.num_experts), expected)


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts"),
    [(9000, 8, 128), (40000, 2, 7), (70001, 1, 1), (70001, 1, 40000), (300, 4, 50000), (16384, 4, 3)],
)
@pytest.mark.parametrize("dtype", ID_DTYPES, ids=str)
def test_many_slots(
    backend: Backend, torch_threads: int, num_tokens: int, top_k: int, num_experts: int, dtype: torch.dtype
) -> None:
    """Enough for several ranges, which must come out as one."""
    ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k)).to(dtype)
    assert_same_permutation(raw.permute(backend.put(ids), num_experts), reference.permute(ids, num_experts))


def test_64_bit_ids_are_not_cut_to_32_bits(backend: Backend) -> None:
    ids = torch.tensor([[2**32, 1], [2**32 + 1, -(2**32)], [2**63 - 1, -(2**63)]])
    offsets, row_to_slot, slot_to_row = raw.permute(backend.put(ids), 2)
    assert offsets.tolist() == [0, 0, 1]
    assert row_to_slot.tolist() == [1, -1, -1, -1, -1, -1]
    assert slot_to_row.tolist() == [[-1, 0], [-1, -1], [-1, -1]]


def test_strided_ids(backend: Backend) -> None:
    ids = backend.put(torch.randint(-1, 6, (17, 3), dtype=torch.int32))
    expected = raw.permute(ids, 5)
    for _, variant in strided_variants(ids):
        assert_same_permutation(raw.permute(variant, 5), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gather_rows_and_its_gradient(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    shape = case.shape

    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(shape.num_tokens, shape.hidden_size, generator=generator).to(dtype)}

    on_cpu = reference.permute(case.topk_ids(0), shape.num_experts)
    perm = moe_ext.Permutation(*backend.put(on_cpu))
    check_against_truth(
        lambda x: moe_ext.gather_rows(x, perm), lambda x: reference.gather_rows(x, on_cpu), draw, backend=backend
    )


@pytest.mark.parametrize(
    "dtype", [*FLOATS, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str
)
@pytest.mark.parametrize("hidden_size", [0, 1, 3, 64, 1000])
def test_gather_rows_copies_any_dtype(
    backend: Backend, torch_threads: int, dtype: torch.dtype, hidden_size: int
) -> None:
    top_k, ids = 3, torch.randint(-1, 8, (200, 3))
    offsets, row_to_slot, _ = reference.permute(ids, 8)
    bits = torch.randint(0, 2, (200, hidden_size * dtype.itemsize), dtype=torch.uint8)
    x = bits.view(dtype).view(200, hidden_size) if hidden_size else torch.empty(200, 0, dtype=dtype)
    valid = int(offsets[-1])
    expected = x[(row_to_slot[:valid] // top_k).long()]
    row_to_slot, offsets = backend.put((row_to_slot, offsets))
    for _, variant in strided_variants(x) if dtype.is_floating_point and dtype.itemsize > 1 else [("", x)]:
        rows = raw.gather_rows(backend.put(variant), row_to_slot, offsets, top_k)
        assert rows.dtype == dtype
        assert_same_bits(rows[:valid], expected, "rows")
        assert rows[valid:].contiguous().view(torch.uint8).sum() == 0


@given(data=st.data())
def test_gradient_adds_in_order(backend: Backend, data: st.DataObject) -> None:
    """Bit for bit the sum over k = 0, 1, ... in float32, rounded once, for any width."""
    dtype = data.draw(st.sampled_from(FLOATS))
    num_tokens, top_k = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 9))
    hidden_size = data.draw(st.integers(1, 80) | st.integers(1000, 2100))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    ids = torch.randint(-1, 4, (num_tokens, top_k), generator=generator)
    _, _, slot_to_row = reference.permute(ids, 3)
    grad_rows = torch.randn(num_tokens * top_k, hidden_size, generator=generator).to(dtype)
    wide = grad_rows.to(torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.zeros(num_tokens, hidden_size, dtype=wide.dtype)
    for k in range(top_k):
        row = slot_to_row[:, k].long()
        expected += torch.where(row.unsqueeze(1) >= 0, wide[row], 0.0)
    actual = raw.gather_rows_backward(*backend.put((grad_rows, slot_to_row)))
    assert_same_bits(actual, expected.to(dtype), "grad_x")


def test_wrong_arguments_are_errors(backend: Backend) -> None:
    x = backend.put(torch.randn(4, 8))
    ids, flat, floats = backend.put((torch.zeros(4, 2, dtype=torch.int32), IDS.flatten(), IDS.float()))
    offsets, row_to_slot, _ = raw.permute(ids, 3)
    for bad, message in (
        (lambda: raw.permute(floats, 3), "topk_ids must be Int or Long"),
        (lambda: raw.permute(flat, 3), r"topk_ids must be \[T, K\]"),
        (lambda: raw.permute(ids, 0), "num_experts must be"),
        (lambda: raw.permute(ids, 2**40), "num_experts must be"),
        (lambda: raw.gather_rows(x, row_to_slot, offsets[:0], 2), "expert_offsets must be"),
        (lambda: raw.gather_rows(x, row_to_slot, offsets, 2**62), "top_k is too large"),
        (lambda: raw.gather_rows(x, row_to_slot.long(), offsets, 2), "row_to_slot must be Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()


def test_wrong_contents(backend: Backend) -> None:
    """Errors where the host reads index tensors; nowhere are they followed out of a tensor."""
    x = backend.put(torch.randn(4, 8))
    offsets, row_to_slot, slot_to_row = raw.permute(backend.put(IDS), 3)
    rows = raw.gather_rows(x, row_to_slot, offsets, 2)
    for bad, message in (
        (lambda: raw.gather_rows(x, row_to_slot + 5, offsets, 2), "row_to_slot names slot 12"),
        (lambda: raw.gather_rows(x, row_to_slot + 2**30, offsets, 2), "row_to_slot names slot"),
        (lambda: raw.gather_rows(x, row_to_slot - 1, offsets, 2), "row_to_slot names slot -1"),
        (lambda: raw.gather_rows(x, row_to_slot, offsets, 1), "row_to_slot names slot 7"),
        (lambda: raw.gather_rows(x, row_to_slot, offsets + 1, 2), "expert_offsets ends at 9"),
        (lambda: raw.gather_rows(x, row_to_slot, offsets + 2**30, 2), "expert_offsets"),
        (lambda: raw.gather_rows(x, row_to_slot, -offsets, 2), "expert_offsets must not fall"),
        (lambda: raw.gather_rows_backward(rows, slot_to_row + 1), "slot_to_row names row 8"),
        (lambda: raw.gather_rows_backward(rows, slot_to_row + 2**30), "slot_to_row names row"),
    ):
        with pytest.raises(RuntimeError, match=message) if backend.is_cpu else nullcontext():
            bad()


@pytest.mark.parametrize("drop_order", ["token", "choice"])
@pytest.mark.parametrize("capacity", [0, 1, 3, 10**6])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_capacity(backend: Backend, case: Case, capacity: int, drop_order: str) -> None:
    """An expert takes its first slots, in the order asked for; the rest are as sentinels."""
    ids, num_experts = case.topk_ids(0), case.shape.num_experts
    expected = reference.permute(ids, num_experts, capacity=capacity, drop_order=drop_order)
    actual = moe_ext.permute(backend.put(ids), num_experts, capacity=capacity, drop_order=drop_order)
    assert_same_permutation(actual, expected)
    assert (actual.expert_offsets.diff() <= capacity).all()


def test_capacity_drops_later_choices_first(backend: Backend) -> None:
    """Three tokens want expert 0; two of them as a second choice. One place: GShard keeps the first choice."""
    ids = backend.put(torch.tensor([[1, 0], [2, 0], [0, 1]], dtype=torch.int32))
    by_token = moe_ext.permute(ids, 3, capacity=1).slot_to_row
    by_choice = moe_ext.permute(ids, 3, capacity=1, drop_order="choice").slot_to_row
    assert by_token.tolist() == [[1, 0], [2, -1], [-1, -1]]
    assert by_choice.tolist() == [[1, -1], [2, -1], [0, -1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"capacity": -1}, "capacity must be at least 0, got -1"), ({"drop_order": "random"}, 'one of "token", "choice"')],
)
def test_a_wrong_capacity_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_ext.permute(IDS, 3, **wrong)  # type: ignore[arg-type]
