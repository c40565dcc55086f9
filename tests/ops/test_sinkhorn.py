"""sinkhorn against the reference in float64, and what it promises, on every backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.inputs import strided_variants

raw = torch.ops.moe_ext
INF, NAN = float("inf"), float("nan")
A = torch.tensor(
    [[2, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]], dtype=torch.float64
)


def sinkhorn(backend: Backend, logits: Tensor, **options: object) -> Tensor:
    result: Tensor = moe_ext.sinkhorn(backend.put(logits), **options)  # type: ignore[arg-type]
    return result.cpu()


def test_worked_example(backend: Backend) -> None:
    """Token 1 moves from expert 1, which is wanted too much, to expert 3."""
    balanced = sinkhorn(backend, A, tolerance=0.0, max_iterations=200 if not backend.is_virtual else 60)
    expected = torch.tensor([0.045533, 0.314194, 0.039741, 0.600531], dtype=torch.float64)
    torch.testing.assert_close(balanced[1], expected, atol=1e-6, rtol=0)
    assert balanced.argmax(1).tolist() == [0, 3, 2, 0, 1, 1]
    torch.testing.assert_close(balanced.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(balanced.sum(0), torch.full((4,), 1.5, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_experts"), [(64, 8), (7, 5), (300, 17), (3, 40), (1, 1), (9, 1), (1, 9), (0, 4)]
)
def test_shapes(backend: Backend, num_tokens: int, num_experts: int, dtype: torch.dtype) -> None:
    logits = torch.randn(num_tokens, num_experts).to(dtype)
    balanced = sinkhorn(backend, logits, max_iterations=12, tolerance=0.0)
    assert balanced.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.sinkhorn(logits.double(), max_iterations=12, tolerance=0.0)
    precise = dtype == torch.float64
    torch.testing.assert_close(
        balanced.double(), expected, rtol=1e-12 if precise else 1e-5, atol=1e-14 if precise else 1e-6
    )


@given(seed=st.integers(0, 1000), num_tokens=st.integers(1, 30), num_experts=st.integers(1, 9))
def test_rows_and_columns_have_equal_sums(backend: Backend, seed: int, num_tokens: int, num_experts: int) -> None:
    if not backend.takes(seed):
        return
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    balanced = sinkhorn(backend, logits, tolerance=1e-5, max_iterations=80)
    torch.testing.assert_close(balanced.sum(1), torch.ones(num_tokens), atol=1e-5, rtol=0)
    share = num_tokens / num_experts
    torch.testing.assert_close(balanced.sum(0), torch.full((num_experts,), share), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
def test_stops_within_the_tolerance(backend: Backend, tolerance: float) -> None:
    """As many iterations as the reference makes, and the columns are off by no more than asked."""
    logits = 3 * torch.randn(40, 6, dtype=torch.float64)
    balanced = sinkhorn(backend, logits, tolerance=tolerance)
    expected = reference.sinkhorn(logits, tolerance=tolerance)
    torch.testing.assert_close(balanced, expected, rtol=1e-12, atol=0)
    assert (balanced.sum(0) * 6 / 40 - 1).abs().mean() <= 2 * tolerance
    exact = reference.sinkhorn(logits, tolerance=0.0, max_iterations=500)
    assert not torch.allclose(expected, exact, rtol=1e-9)


def test_no_iterations_is_softmax(backend: Backend) -> None:
    logits = torch.randn(5, 3)
    torch.testing.assert_close(sinkhorn(backend, logits, max_iterations=0), logits.softmax(1))


def test_balanced_logits_stay(backend: Backend) -> None:
    torch.testing.assert_close(sinkhorn(backend, torch.zeros(8, 4)), torch.full((8, 4), 0.25))


def test_large_logits_do_not_overflow(backend: Backend) -> None:
    logits = torch.randn(16, 4)
    shifted = logits + 1e4 * torch.arange(16)[:, None]
    torch.testing.assert_close(sinkhorn(backend, shifted), sinkhorn(backend, shifted - shifted.amax(1, keepdim=True)))


def test_nonfinite_logits(backend: Backend) -> None:
    """NaN is no choice, +inf the only one; a row without a choice is zeros and leaves the others as they were."""
    logits = torch.randn(12, 3)
    logits[1, 2], logits[2] = NAN, torch.tensor([-INF, NAN, -INF])
    balanced = sinkhorn(backend, logits)
    assert balanced[1, 2] == 0
    assert balanced[2].tolist() == [0, 0, 0]
    torch.testing.assert_close(balanced.sum(0), torch.full((3,), 11 / 3), atol=0, rtol=1e-4)
    others = torch.cat([logits[:2], logits[3:]])
    torch.testing.assert_close(torch.cat([balanced[:2], balanced[3:]]), sinkhorn(backend, others))
    logits[3, 1] = INF
    assert sinkhorn(backend, logits)[3].tolist() == [0, 1, 0]


def test_columns_out_of_reach_leave_finite_numbers(backend: Backend) -> None:
    logits = torch.tensor([[0.0, -INF], [0.0, -200.0], [1.0, -300.0]])
    balanced = sinkhorn(backend, logits)
    torch.testing.assert_close(balanced, torch.tensor([[1.0, 0.0]] * 3))
    nothing = torch.full((3, 2), -INF)
    assert (sinkhorn(backend, nothing) == 0).all()


@pytest.mark.parametrize("reached", [2, 7, 13])
def test_no_balance_to_be_had(backend: Backend, reached: int) -> None:
    """The factors of what too many tokens depend on fall in each iteration, and must not reach what has no inverse."""
    logits = torch.randn(40, 32)
    logits[:, reached:] = -INF
    for iterations in (23, 51, 100, 101, 102) if not backend.is_virtual else (60,):
        balanced = sinkhorn(backend, logits, max_iterations=iterations)
        torch.testing.assert_close(balanced.sum(1), torch.ones(40), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            balanced[:, :reached].sum(0), torch.full((reached,), 40 / reached), atol=0, rtol=1e-3
        )
    logits[0] = 0.0  # one token reaches all
    balanced = sinkhorn(backend, logits, max_iterations=60)
    torch.testing.assert_close(balanced.sum(1), torch.ones(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(balanced, reference.sinkhorn(logits, max_iterations=60), atol=1e-5, rtol=0)


@given(st.integers(0, 1000))
def test_a_permutation_of_the_tokens_permutes_the_rows(backend: Backend, seed: int) -> None:
    if not backend.takes(seed):
        return
    generator = torch.Generator().manual_seed(seed)
    logits, order = torch.randn(20, 4, generator=generator), torch.randperm(20, generator=generator)
    balanced = sinkhorn(backend, logits, tolerance=0.0, max_iterations=10)
    permuted = sinkhorn(backend, logits[order], tolerance=0.0, max_iterations=10)
    torch.testing.assert_close(permuted, balanced[order])


def test_strided_logits(backend: Backend) -> None:
    logits = backend.put(torch.randn(20, 5))
    expected = moe_ext.sinkhorn(logits, max_iterations=5)
    for _, variant in strided_variants(logits):
        assert torch.equal(moe_ext.sinkhorn(variant, max_iterations=5), expected)


def test_repeats_to_the_bit(backend: Backend) -> None:
    """Enough tokens for several chunks."""
    logits = backend.put(torch.randn(3000 if backend.is_cpu else 300, 20))
    expected = moe_ext.sinkhorn(logits, max_iterations=8)
    for variation in backend.variations():
        assert torch.equal(moe_ext.sinkhorn(logits, max_iterations=8), expected), variation


def test_wrong_raw_arguments_are_errors(backend: Backend) -> None:
    logits = backend.put(torch.randn(8, 4))
    for bad, message in (
        (lambda: raw.sinkhorn(logits.half(), 1e-4, 9), "logits must be Float or Double"),
        (lambda: raw.sinkhorn(logits[0], 1e-4, 9), r"logits must be \[T, E\]"),
        (lambda: raw.sinkhorn(logits, 1e-4, -1), "max_iterations must be at least 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()
