import pytest
import torch

from moe_ext.reference import gather_rows, permute
from tests.reference import brute_force
from tests.support.cases import CASES, SMALL_CASES, Case


def test_worked_example() -> None:
    offsets, row_to_slot, slot_to_row = permute(torch.tensor([[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]]), 4)
    assert offsets.tolist() == [0, 5, 9, 11, 12]
    assert row_to_slot.tolist() == [0, 5, 6, 9, 11, 1, 2, 8, 10, 4, 7, 3]
    assert slot_to_row.flatten().tolist() == [0, 5, 6, 11, 9, 1, 2, 10, 7, 3, 8, 4]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_brute_force(case: Case, dtype: torch.dtype) -> None:
    topk_ids = case.topk_ids().to(dtype)
    actual = permute(topk_ids, case.shape.num_experts)
    assert all(tensor.dtype == torch.int32 for tensor in actual)
    assert actual[2].shape == topk_ids.shape
    assert [tensor.tolist() for tensor in actual] == list(
        brute_force.permute(topk_ids.tolist(), case.shape.num_experts)
    )


def test_worked_example_with_capacity() -> None:
    """Expert 0 is chosen first by tokens 0 and 3, second by tokens 2, 4 and 5."""
    ids = torch.tensor([[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]])
    offsets, row_to_slot, slot_to_row = permute(ids, 4, capacity=2)
    assert offsets.tolist() == [0, 2, 4, 6, 7]
    assert row_to_slot.tolist() == [0, 5, 1, 2, 4, 7, 3, -1, -1, -1, -1, -1]
    assert slot_to_row.tolist() == [[0, 2], [3, 6], [4, 1], [-1, 5], [-1, -1], [-1, -1]]

    offsets, row_to_slot, slot_to_row = permute(ids, 4, capacity=2, drop_order="choice")
    assert offsets.tolist() == [0, 2, 4, 6, 7]
    assert row_to_slot.tolist() == [0, 6, 2, 8, 4, 7, 3, -1, -1, -1, -1, -1]
    assert slot_to_row.tolist() == [[0, -1], [2, 6], [4, -1], [1, 5], [3, -1], [-1, -1]]


@pytest.mark.parametrize("drop_order", ["token", "choice"])
@pytest.mark.parametrize("capacity", [0, 1, 3, 1000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_brute_force_with_capacity(case: Case, capacity: int, drop_order: str) -> None:
    ids, num_experts = case.topk_ids(), case.shape.num_experts
    actual = permute(ids, num_experts, capacity, drop_order)
    expected = brute_force.permute(ids.tolist(), num_experts, capacity, drop_order)
    assert [tensor.tolist() for tensor in actual] == list(expected)


@pytest.mark.parametrize("drop_order", ["token", "choice"])
def test_capacity_that_drops_nothing(drop_order: str) -> None:
    ids = torch.randint(-1, 9, (50, 4))
    busiest = int(torch.bincount(ids[(ids >= 0) & (ids < 8)]).max())
    for actual, expected in zip(permute(ids, 8, busiest, drop_order), permute(ids, 8), strict=True):
        assert torch.equal(actual, expected)


def test_int64_ids_that_would_wrap_around_are_sentinels() -> None:
    offsets, row_to_slot, _ = permute(torch.tensor([[2**32, -(2**32) + 1, 1]]), 2)
    assert offsets.tolist() == [0, 0, 1]
    assert row_to_slot.tolist() == [2, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gather_rows(case: Case, dtype: torch.dtype) -> None:
    x = torch.randn(case.shape.num_tokens, case.shape.hidden_size).to(dtype)
    permutation = permute(case.topk_ids(), case.shape.num_experts)
    rows = gather_rows(x, permutation)
    assert rows.dtype == dtype
    assert rows.shape == (case.shape.num_tokens * case.shape.top_k, case.shape.hidden_size)
    for row, slot in zip(rows, permutation[1].tolist(), strict=True):
        assert torch.equal(row, x[slot // case.shape.top_k] if slot >= 0 else torch.zeros_like(row))


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gather_rows_gradcheck(case: Case) -> None:
    x = torch.randn(case.shape.num_tokens, case.shape.hidden_size, dtype=torch.float64, requires_grad=True)
    permutation = permute(case.topk_ids(), case.shape.num_experts)
    assert torch.autograd.gradcheck(lambda value: gather_rows(value, permutation), x)


def test_gradient_of_gather_rows_is_rounded_once() -> None:
    x = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    permutation = permute(torch.tensor([[0, 1, 2]]), 3)
    upstream = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    gather_rows(x, permutation).backward(upstream)
    assert x.grad is not None
    assert x.grad.item() == 258  # adding in bfloat16 stays at 256
