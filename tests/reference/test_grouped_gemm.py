import pytest
import torch
from torch import Tensor

from moe_ext.reference import grouped_gemm, permute
from tests.reference.brute_force import affine
from tests.support.cases import CASES, SMALL_CASES, Case
from tests.support.inputs import strided_variants


def problem(case: Case, with_gather: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """rows, weight, bias, expert_offsets, gather in float64."""
    shape = case.shape
    offsets, row_to_slot, _ = permute(case.topk_ids(), shape.num_experts)
    width = shape.intermediate_size
    num_rows = shape.num_tokens if with_gather else row_to_slot.numel()
    rows = torch.randn(num_rows, shape.hidden_size, dtype=torch.float64)
    weight = torch.randn(shape.num_experts, width, shape.hidden_size, dtype=torch.float64) / shape.hidden_size**0.5
    bias = torch.randn(shape.num_experts, width, dtype=torch.float64)
    gather = row_to_slot.div(shape.top_k, rounding_mode="floor") if with_gather else None
    return rows, weight, bias, offsets, gather


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_gather", [False, True])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_brute_force(case: Case, with_gather: bool, with_bias: bool) -> None:
    rows, weight, bias, offsets, gather = problem(case, with_gather)
    actual = grouped_gemm(rows, weight, offsets, bias=bias if with_bias else None, gather=gather)
    num_rows = case.shape.num_tokens * case.shape.top_k
    expected = torch.zeros(num_rows, weight.shape[1], dtype=torch.float64)
    for expert in range(case.shape.num_experts):
        for row in range(int(offsets[expert]), int(offsets[expert + 1])):
            source = rows[row if gather is None else int(gather[row])].tolist()
            vector = bias[expert].tolist() if with_bias else None
            expected[row] = torch.tensor(affine(weight[expert].tolist(), source, vector), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("with_gather", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_matrix_product_per_expert(case: Case, with_gather: bool) -> None:
    rows, weight, bias, offsets, gather = problem(case, with_gather)
    actual = grouped_gemm(rows, weight, offsets, bias=bias, gather=gather)
    transposed = grouped_gemm(rows, weight.mT, offsets, bias=bias, gather=gather, transposed=True)
    torch.testing.assert_close(transposed, actual, rtol=0, atol=1e-12)
    gathered = rows if gather is None else rows[gather.clamp(min=0).long()] if rows.numel() else rows[:0]
    for expert, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        expected = gathered[begin:end] @ weight[expert].T + bias[expert]
        torch.testing.assert_close(actual[begin:end], expected, rtol=0, atol=1e-12)
    assert (actual[int(offsets[-1]) :] == 0).all()


@pytest.mark.parametrize("with_gather", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(case: Case, transposed: bool, with_gather: bool) -> None:
    rows, weight, bias, offsets, gather = problem(case, with_gather)
    weight = weight.mT.contiguous() if transposed else weight

    def run(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return grouped_gemm(rows, weight, offsets, bias=bias, gather=gather, transposed=transposed)

    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in (rows, weight, bias)])


def test_rows_past_the_last_expert_are_neither_read_nor_differentiated() -> None:
    rows = torch.tensor([[1.0], [2.0], [float("nan")]], requires_grad=True)
    weight = torch.tensor([[[3.0]], [[5.0]]], requires_grad=True)
    out = grouped_gemm(rows, weight, torch.tensor([0, 2, 2]))
    assert out.flatten().tolist() == [3, 6, 0]
    out.sum().backward()
    assert rows.grad is not None
    assert weight.grad is not None
    assert rows.grad.flatten().tolist() == [3, 3, 0]
    assert weight.grad.flatten().tolist() == [3, 0]  # an exact zero for the expert without rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_once(dtype: torch.dtype) -> None:
    rows, weight = torch.randn(10, 40).to(dtype), torch.randn(2, 8, 40).to(dtype)
    bias, offsets = torch.randn(2, 8).to(dtype), torch.tensor([0, 4, 10])
    exact = grouped_gemm(rows.double(), weight.double(), offsets, bias=bias.double())
    actual = grouped_gemm(rows, weight, offsets, bias=bias)
    assert actual.dtype == dtype
    half_step = exact.abs() * torch.finfo(dtype).eps / 2 + 1e-5
    assert ((actual.double() - exact).abs() <= half_step).all()


def test_strides_do_not_matter() -> None:
    rows, weight, offsets = torch.randn(6, 5), torch.randn(3, 4, 5), torch.tensor([0, 1, 4, 6])
    expected = grouped_gemm(rows, weight, offsets)
    for name, variant in strided_variants(weight):
        torch.testing.assert_close(grouped_gemm(rows, variant, offsets), expected, rtol=0, atol=1e-6, msg=name)
    for name, variant in strided_variants(rows):
        torch.testing.assert_close(grouped_gemm(variant, weight, offsets), expected, rtol=0, atol=1e-6, msg=name)
