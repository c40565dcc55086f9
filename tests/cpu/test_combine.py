"""combine, its gradients and segment_sum against the truth, on every instruction set."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
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
    """rows (NaN where no slot is), topk_weights (NaN where no row is), slot_to_row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k), generator=generator)
    offsets, _, slot_to_row = raw.permute(ids, num_experts)
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
def test_cases(cpu_isa: str, case: Case, dtype: torch.dtype) -> None:
    shape = case.shape
    perm = moe_ext.permute(case.topk_ids(0), shape.num_experts)

    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(perm.row_to_slot.numel(), shape.hidden_size, generator=generator)
        weights = torch.randn(shape.num_tokens, shape.top_k, generator=generator).softmax(-1)
        return {"rows": rows.to(dtype), "topk_weights": weights.to(sum_dtype(dtype))}

    check_against_truth(
        lambda rows, topk_weights: moe_ext.combine(rows, topk_weights, perm),
        lambda rows, topk_weights: reference.combine(rows, topk_weights, tuple(perm)),
        draw,
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
    dtype: torch.dtype, num_tokens: int, top_k: int, hidden_size: int, num_experts: int, seed: int
) -> None:
    """Bit for bit the sum over k = 0, 1, ... on every instruction set; NaN where nothing may be read stays unread."""
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

    first: tuple[Tensor, Tensor] | None = None
    before = moe_ext._C.cpu_isa()
    try:
        for isa in moe_ext._C.cpu_isas_available():
            moe_ext._C.set_cpu_isa(isa)
            assert_same_bits(raw.combine(rows, weights, slot_to_row), expected, f"y, {isa}")
            actual = raw.combine_backward(grad_y, rows, weights, slot_to_row)
            assert_same_bits(actual[0], grad_rows, f"grad_rows, {isa}")
            assert ((actual[1].double() - grad_weights).abs() <= 16 * rounding).all(), isa
            first = first or actual
            assert_same_bits(actual[1], first[1], f"grad_topk_weights, {isa}")
    finally:
        moe_ext._C.set_cpu_isa(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_repeats_change_no_bit(cpu_isa: str, dtype: torch.dtype) -> None:
    rows, weights, slot_to_row = inputs(700, 4, 130, 16, dtype, seed=0)
    grad_y = torch.randn(700, 130).to(dtype)
    results = []
    for threads in (1, 2, 1, 2):
        torch.set_num_threads(threads)
        results.append(
            (raw.combine(rows, weights, slot_to_row), *raw.combine_backward(grad_y, rows, weights, slot_to_row))
        )
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert_same_bits(first, second, "combine")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(cpu_isa: str, dtype: torch.dtype) -> None:
    rows, weights, slot_to_row = inputs(9, 3, 70, 4, dtype, seed=0)
    grad_y = torch.randn(9, 70).to(dtype)
    expected = raw.combine(rows, weights, slot_to_row)
    expected_grads = raw.combine_backward(grad_y, rows, weights, slot_to_row)
    for (name, a), (_, b), (_, c), (_, d) in zip(
        *map(strided_variants, (rows, weights, slot_to_row, grad_y)), strict=True
    ):
        assert_same_bits(raw.combine(a, b, c), expected, name)
        for actual, wanted in zip(raw.combine_backward(d, a, b, c), expected_grads, strict=True):
            assert_same_bits(actual, wanted, name)


def test_expanded_gradient(cpu_isa: str) -> None:
    """The gradient of a sum has strides of 0."""
    rows, weights, slot_to_row = inputs(9, 3, 70, 4, torch.float32, seed=0)
    grad_y = torch.ones(()).expand(9, 70)
    expected = raw.combine_backward(grad_y.contiguous(), rows, weights, slot_to_row)
    for actual, wanted in zip(raw.combine_backward(grad_y, rows, weights, slot_to_row), expected, strict=True):
        assert_same_bits(actual, wanted, "gradient")


def test_rows_without_a_slot_get_zeros() -> None:
    """Wherever they stand, not just at the end."""
    rows, weights = torch.randn(5, 3), torch.ones(2, 2)
    slot_to_row = torch.tensor([[4, -1], [1, 0]], dtype=torch.int32)
    grad_rows, _ = raw.combine_backward(torch.ones(2, 3), rows, weights, slot_to_row)
    assert grad_rows[:, 0].tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_segment_sum(cpu_isa: str, case: Case, dtype: torch.dtype) -> None:
    shape = case.shape
    offsets, row_to_slot, _ = raw.permute(case.topk_ids(0), shape.num_experts)
    rows = torch.randn(row_to_slot.numel(), shape.hidden_size).to(dtype)
    rows[int(offsets[-1]) :] = float("nan")
    ends = offsets.tolist()

    def by_hand(wide: Tensor) -> Tensor:
        sums = torch.zeros(shape.num_experts, shape.hidden_size, dtype=wide.dtype)
        for expert in range(shape.num_experts):
            for row in range(ends[expert], ends[expert + 1]):
                sums[expert] += wide[row]
        return sums

    actual = raw.segment_sum(rows, offsets)
    expected = by_hand(rows.to(sum_dtype(dtype))).to(dtype)
    assert_same_bits(actual, expected, "segment_sum")
    assert_close_to_truth(actual, by_hand(rows.double()), expected, "segment_sum")
    for name, variant in strided_variants(rows):
        assert_same_bits(raw.segment_sum(variant, offsets), expected, name)


def test_wrong_contents_are_errors() -> None:
    offsets, _, slot_to_row = raw.permute(torch.zeros(4, 2, dtype=torch.int32), 3)
    rows, weights, grad_y = torch.randn(8, 6), torch.rand(4, 2), torch.randn(4, 6)
    for bad, message in (
        (lambda: raw.combine(rows, weights, slot_to_row + 1), "slot_to_row names row 8"),
        (lambda: raw.combine(rows, weights.double(), slot_to_row), "topk_weights must be Float, got Double"),
        (lambda: raw.combine(rows, weights[:3], slot_to_row), "topk_weights must have T = 4"),
        (lambda: raw.combine(rows.long(), weights, slot_to_row), "rows must be Float"),
        (lambda: raw.combine(rows[0], weights, slot_to_row), r"rows must be \[R, H\]"),
        (lambda: raw.combine_backward(grad_y, rows, weights, slot_to_row * 0), "row 0 more than once"),
        (lambda: raw.combine_backward(grad_y[:, :5], rows, weights, slot_to_row), "grad_y must have H = 6"),
        (lambda: raw.combine_backward(grad_y.half(), rows, weights, slot_to_row), "grad_y must be Float"),
        (lambda: raw.segment_sum(rows, offsets * 2), "expert_offsets ends at 16"),
        (lambda: raw.segment_sum(rows, offsets.flip(0)), "expert_offsets must not fall"),
        (lambda: raw.segment_sum(rows, offsets - 1), "expert_offsets must begin at 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()
