import math

import pytest
import torch
from torch import Tensor

from moe_ext.reference import combine, gather_rows, grouped_gemm, permute, route
from tests.support.cases import CASES, SMALL_CASES, Case


def problem(case: Case) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    shape = case.shape
    rows = torch.randn(shape.num_tokens * shape.top_k, shape.hidden_size, dtype=torch.float64)
    weights = torch.rand(shape.num_tokens, shape.top_k, dtype=torch.float64)
    return rows, weights, permute(case.topk_ids(), shape.num_experts)


def test_worked_example() -> None:
    logits = torch.tensor([[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]])
    weights, ids = route(logits, 2, renormalize=True)
    permutation = permute(ids, 4)
    x = torch.arange(1.0, 7.0)[:, None]
    times_e_plus_1 = torch.arange(1.0, 5.0)[:, None, None]
    y = combine(grouped_gemm(gather_rows(x, permutation), times_e_plus_1, permutation[0]), weights, permutation)
    expected = [1.268941, 5.075766, 7.905447, 4.953623, 8.655293, 10.386351]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_brute_force(case: Case) -> None:
    rows, weights, permutation = problem(case)
    actual = combine(rows, weights, permutation)
    assert torch.equal(actual, combine(rows, weights, permutation[2]))
    listed = rows.tolist()
    for token, slots in enumerate(permutation[2].tolist()):
        pairs = [(weights[token, k].item(), listed[row]) for k, row in enumerate(slots) if row >= 0]
        expected = [math.fsum(w * row[h] for w, row in pairs) for h in range(case.shape.hidden_size)]
        torch.testing.assert_close(actual[token], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    rows, weights, permutation = problem(case)
    assert torch.autograd.gradcheck(
        lambda *inputs: combine(*inputs, permutation), [rows.requires_grad_(), weights.requires_grad_()]
    )


def test_a_slot_without_row_neither_reads_nor_spoils_anything() -> None:
    nan = float("nan")
    rows = torch.tensor([[nan], [2.0]], requires_grad=True)
    weights = torch.tensor([[nan, 3.0], [nan, nan]], requires_grad=True)
    y = combine(rows, weights, torch.tensor([[-1, 1], [-1, -1]], dtype=torch.int32))
    assert y.flatten().tolist() == [6, 0]
    y.sum().backward()
    assert rows.grad is not None
    assert weights.grad is not None
    assert rows.grad.flatten().tolist() == [0, 3]
    assert weights.grad.tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    step = torch.finfo(dtype).eps
    # Each small row alone would be rounded away in the data dtype.
    rows = torch.tensor([[1.0], [step / 4], [step / 4], [step / 4], [step / 4]]).to(dtype)
    y = combine(rows, torch.ones(1, 5), torch.arange(5, dtype=torch.int32)[None])
    assert y.dtype == dtype
    assert y.item() == 1 + step


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_of_the_weights_has_their_dtype(weight_dtype: torch.dtype) -> None:
    weights = torch.ones(1, 2, dtype=weight_dtype, requires_grad=True)
    combine(torch.ones(2, 3, dtype=torch.bfloat16), weights, torch.tensor([[0, 1]])).sum().backward()
    assert weights.grad is not None
    assert weights.grad.dtype == weight_dtype
    assert weights.grad.tolist() == [[3, 3]]
