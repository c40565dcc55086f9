"""What uses no matrix product has the same bits on each instruction set."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import _C
from tests.support.backends import pinned
from tests.support.tolerance import assert_same_bits

raw = torch.ops.moe_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCORINGS = (("softmax", False), ("softmax", True), ("sigmoid", False), ("sqrtsoftplus", False), ("none", False))


def assert_same_on_each(function: Callable[[], tuple[Tensor, ...]]) -> None:
    first: tuple[Tensor, ...] | None = None
    for isa in _C.cpu_isas_available():
        with pinned(isa):
            result = function()
        first = first or result
        for actual, expected in zip(result, first, strict=True):
            assert_same_bits(actual, expected, isa)


def weights_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@given(
    num_experts=st.integers(1, 300),
    top_k=st.integers(1, 20),
    scoring=st.sampled_from(SCORINGS),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    renormalize=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_route_and_its_gradient(
    num_experts: int, top_k: int, scoring: tuple[str, bool], dtype: torch.dtype, biased: bool, renormalize: bool,
    seed: int,
) -> None:  # fmt: skip
    top_k = min(top_k, num_experts)
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, num_experts, generator=generator)).to(dtype)
    upstream = torch.randn(4, top_k, generator=generator).to(weights_dtype(dtype))
    bias = torch.randn(num_experts, generator=generator) if biased else None

    def run() -> tuple[Tensor, ...]:
        leaf = logits.clone().requires_grad_()
        score, softmax_after = scoring
        weights, ids = moe_ext.route(
            leaf, top_k, score=score, softmax_after=softmax_after, bias=bias, renormalize=renormalize
        )
        return weights.detach(), ids, *torch.autograd.grad(weights, leaf, upstream)

    assert_same_on_each(run)


@given(
    num_tokens=st.integers(0, 4),
    top_k=st.integers(1, 9),
    hidden_size=st.integers(1, 80) | st.integers(1000, 2100),
    num_experts=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_combine_and_its_gradients(
    num_tokens: int, top_k: int, hidden_size: int, num_experts: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k), generator=generator)
    _, _, slot_to_row = moe_ext.permute(ids, num_experts)
    rows = torch.randn(num_tokens * top_k, hidden_size, generator=generator).to(dtype)
    weights = torch.randn(num_tokens, top_k, generator=generator).to(weights_dtype(dtype))
    grad_y = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    assert_same_on_each(
        lambda: (raw.combine(rows, weights, slot_to_row), *raw.combine_backward(grad_y, rows, weights, slot_to_row))
    )


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 600)),
    dispatch=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_statistics_of_soft_mix(sizes: tuple[int, int, int], dispatch: bool, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(sizes, generator=generator)).to(dtype)
    mask = torch.rand(sizes[:2], generator=generator) > 0.3
    values = torch.zeros(sizes[0], sizes[1 if dispatch else 2], 0, dtype=weights_dtype(dtype))
    assert_same_on_each(lambda: (raw.soft_mix(values, logits, mask, dispatch)[1],))


@given(num_tokens=st.integers(0, 4), top_k=st.integers(1, 9), hidden_size=st.integers(1, 2100), seed=st.integers(0, 99))
def test_gradient_of_gather_rows(num_tokens: int, top_k: int, hidden_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 4, (num_tokens, top_k), generator=generator)
    _, _, slot_to_row = moe_ext.permute(ids, 3)
    for dtype in DTYPES:
        grad_rows = torch.randn(num_tokens * top_k, hidden_size, generator=generator).to(dtype)
        assert_same_on_each(lambda grad_rows=grad_rows: (raw.gather_rows_backward(grad_rows, slot_to_row),))
