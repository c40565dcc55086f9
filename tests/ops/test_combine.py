"""combine, its gradients and segment_sum against the truth, on every backend."""

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
from tests.support.tolerance import assert_close_to_truth, assert_same_bits
from tests.support.truth import check_against_truth

raw = torch.ops.moe_ext

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inputs(
    num_tokens: int, top_k: int, hidden_size: int, num_experts: int, dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """rows (NaN where no slot is), topk_weights (NaN where no row is), slot_to_row. On the CPU."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k), generator=generator)
    offsets, _, slot_to_row = reference.permute(ids, num_experts)
    rows = torch.randn(num_tokens * top_k, hidden_size, generator=generator)
    rows[int(offsets[-1]) :] = float("nan")
    weights = torch.randn(num_tokens, top_k, generator=generator).to(sum_dtype(dtype))
    return [rows.to(dtype), torch.where(slot_to_row < 0, float("nan"), weights), slot_to_row]


def combined_by_hand(rows: Tensor, topk_weights: Tensor, slot_to_row: Tensor) -> Tensor:
    total = torch.zeros(slot_to_row.shape[0], rows.shape[1], dtype=topk_weights.dtype)
    for t, of_token in enumerate(slot_to_row.tolist()):
        for k, row in enumerate(of_token):
            if row >= 0:
                total[t] += topk_weights[t, k] * rows[row].to(total.dtype)
    return total.to(rows.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    shape = case.shape
    on_cpu = reference.permute(case.topk_ids(0), shape.num_experts)
    perm = moe_ext.Permutation(*backend.put(on_cpu))

    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(shape.num_tokens * shape.top_k, shape.hidden_size, generator=generator)
        weights = torch.randn(shape.num_tokens, shape.top_k, generator=generator).softmax(-1)
        return {"rows": rows.to(dtype), "topk_weights": weights.to(sum_dtype(dtype))}

    check_against_truth(
        lambda rows, topk_weights: moe_ext.combine(rows, topk_weights, perm),
        lambda rows, topk_weights: reference.combine(rows, topk_weights, on_cpu),
        draw,
        backend=backend,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    num_tokens=st.integers(0, 4),
    top_k=st.integers(1, 9),
    hidden_size=st.integers(1, 80) | st.integers(1000, 2100),
    num_experts=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape(
    backend: Backend, dtype: torch.dtype, num_tokens: int, top_k: int, hidden_size: int, num_experts: int, seed: int
) -> None:
    """Bit for bit the sum over k = 0, 1, ...; NaN where nothing may be read stays unread."""
    rows, weights, slot_to_row = inputs(num_tokens, top_k, hidden_size, num_experts, dtype, seed)
    grad_y = torch.randn(num_tokens, hidden_size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = combined_by_hand(rows, weights, slot_to_row)
    taken = slot_to_row.long().clamp(min=0)
    owned = slot_to_row >= 0
    products = grad_y.double()[:, None] * rows.double()[taken]
    grad_weights = torch.where(owned, products.sum(-1), 0.0)
    rounding = torch.where(owned, products.abs().sum(-1), 0.0) * torch.finfo(sum_dtype(dtype)).eps
    scaled = (weights[..., None] * grad_y.to(weights.dtype)[:, None]).to(dtype)
    grad_rows = torch.zeros_like(rows)
    grad_rows[slot_to_row[owned].long()] = scaled[owned]

    rows, weights, slot_to_row, grad_y = backend.put((rows, weights, slot_to_row, grad_y))
    assert_same_bits(raw.combine(rows, weights, slot_to_row), expected, "y")
    actual = raw.combine_backward(grad_y, rows, weights, slot_to_row)
    assert_same_bits(actual[0], grad_rows, "grad_rows")
    assert ((actual[1].cpu().double() - grad_weights).abs() <= 16 * rounding).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(backend: Backend, dtype: torch.dtype) -> None:
    given = backend.put((*inputs(9, 3, 70, 4, dtype, seed=0), torch.randn(9, 70).to(dtype)))
    rows, weights, slot_to_row, grad_y = given
    expected = raw.combine(rows, weights, slot_to_row)
    expected_grads = raw.combine_backward(grad_y, rows, weights, slot_to_row)
    products = (grad_y[:, None] * rows[slot_to_row.clamp(min=0)]).double().cpu().abs()
    rounding = products.sum(-1) * torch.finfo(sum_dtype(dtype)).eps
    for (name, a), (_, b), (_, c), (_, d) in zip(*map(strided_variants, given), strict=True):
        assert_same_bits(raw.combine(a, b, c), expected, name)
        grads = raw.combine_backward(d, a, b, c)
        assert_same_bits(grads[0], expected_grads[0], name)
        if backend.is_cpu:
            assert_same_bits(grads[1], expected_grads[1], name)
        else:  # a GPU adds the products in another order where it can't load several values at once
            error = (grads[1] - expected_grads[1]).cpu().abs()
            assert (error <= 16 * rounding)[slot_to_row.cpu() >= 0].all()
            assert (grads[1][slot_to_row < 0] == 0).all()


def test_expanded_gradient(backend: Backend) -> None:
    """The gradient of a sum has strides of 0."""
    rows, weights, slot_to_row = backend.put(inputs(9, 3, 70, 4, torch.float32, seed=0))
    grad_y = torch.ones((), device=backend.device).expand(9, 70)
    expected = raw.combine_backward(grad_y.contiguous(), rows, weights, slot_to_row)
    for actual, wanted in zip(raw.combine_backward(grad_y, rows, weights, slot_to_row), expected, strict=True):
        assert_same_bits(actual, wanted, "gradient")


def test_rows_without_a_slot_get_zeros(backend: Backend) -> None:
    """Wherever they stand, not just at the end."""
    slot_to_row = torch.tensor([[4, -1], [1, 0]], dtype=torch.int32)
    given = backend.put((torch.ones(2, 3), torch.randn(5, 3), torch.ones(2, 2), slot_to_row))
    grad_rows, _ = raw.combine_backward(*given)
    assert grad_rows[:, 0].tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_segment_sum(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    shape = case.shape
    offsets, row_to_slot, _ = reference.permute(case.topk_ids(0), shape.num_experts)
    rows = torch.randn(row_to_slot.numel(), shape.hidden_size).to(dtype)
    rows[int(offsets[-1]) :] = float("nan")
    ends = offsets.tolist()

    def by_hand(wide: Tensor) -> Tensor:
        sums = torch.zeros(shape.num_experts, shape.hidden_size, dtype=wide.dtype)
        for expert in range(shape.num_experts):
            for row in range(ends[expert], ends[expert + 1]):
                sums[expert] += wide[row]
        return sums

    given, offsets = backend.put((rows, offsets))
    actual = raw.segment_sum(given, offsets)
    expected = by_hand(rows.to(sum_dtype(dtype))).to(dtype)
    if backend.is_cpu:  # a GPU cuts the rows of a large expert into runs
        assert_same_bits(actual, expected, "segment_sum")
    assert_close_to_truth(actual, by_hand(rows.double()), expected, "segment_sum")
    for name, variant in strided_variants(given):
        assert_same_bits(raw.segment_sum(variant, offsets), actual, name)


def test_wrong_arguments_are_errors(backend: Backend) -> None:
    offsets, _, slot_to_row = backend.put(reference.permute(torch.zeros(4, 2, dtype=torch.int32), 3))
    rows, weights, grad_y = backend.put((torch.randn(8, 6), torch.rand(4, 2), torch.randn(4, 6)))
    for bad, message in (
        (lambda: raw.combine(rows, weights.double(), slot_to_row), "topk_weights must be Float, got Double"),
        (lambda: raw.combine(rows, weights[:3], slot_to_row), "topk_weights must have T = 4"),
        (lambda: raw.combine(rows.long(), weights, slot_to_row), "rows must be Float"),
        (lambda: raw.combine(rows[0], weights, slot_to_row), r"rows must be \[R, H\]"),
        (lambda: raw.combine_backward(grad_y[:, :5], rows, weights, slot_to_row), "grad_y must have H = 6"),
        (lambda: raw.combine_backward(grad_y.half(), rows, weights, slot_to_row), "grad_y must be Float"),
        (lambda: raw.segment_sum(rows, offsets.long()), "expert_offsets must be Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()


def test_wrong_contents(backend: Backend) -> None:
    """Errors where the host reads index tensors; nowhere are they followed out of a tensor."""
    offsets, _, slot_to_row = backend.put(reference.permute(torch.zeros(4, 2, dtype=torch.int32), 3))
    rows, weights, grad_y = backend.put((torch.randn(8, 6), torch.rand(4, 2), torch.randn(4, 6)))
    for bad, message in (
        (lambda: raw.combine(rows, weights, slot_to_row + 1), "slot_to_row names row 8"),
        (lambda: raw.combine(rows, weights, slot_to_row + 2**30), "slot_to_row names row"),
        (lambda: raw.combine_backward(grad_y, rows, weights, slot_to_row + 2**30), "slot_to_row names row"),
        (lambda: raw.combine_backward(grad_y, rows, weights, slot_to_row * 0), "row 0 more than once"),
        (lambda: raw.segment_sum(rows, offsets * 2), "expert_offsets ends at 16"),
        (lambda: raw.segment_sum(rows, offsets + 2**30), "expert_offsets"),
        (lambda: raw.segment_sum(rows, offsets.flip(0)), "expert_offsets must not fall"),
        (lambda: raw.segment_sum(rows, offsets - 1), "expert_offsets must begin at 0"),
    ):
        with pytest.raises(RuntimeError, match=message) if backend.is_cpu else nullcontext():
            bad()
