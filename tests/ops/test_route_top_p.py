"""route_top_p: the worked example, what the selection promises, policies, and derivatives."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import _C, reference
from tests.support.backends import Backend, pinned
from tests.support.tolerance import assert_same_bits

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXAMPLE_LOGITS = torch.tensor(
    [[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]]
)
SCORES = ("softmax", "sigmoid", "sqrtsoftplus")


def logits_of(num_tokens: int, num_experts: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(num_tokens, num_experts, generator=generator)).to(dtype)


def running_sums(row: Tensor) -> Tensor:
    """In the dtype of the row; torch.cumsum adds float32 in float64."""
    return torch.from_numpy(numpy.cumsum(row.numpy(), dtype=row.numpy().dtype))


def counts(ids: Tensor) -> list[int]:
    return (ids >= 0).sum(dim=1).tolist()


def test_worked_example(backend: Backend) -> None:
    weights, ids = moe_ext.route_top_p(backend.put(EXAMPLE_LOGITS), 0.7)
    assert counts(ids) == [2, 2, 2, 1, 2, 2]
    assert ids.dtype == torch.int32
    order = EXAMPLE_LOGITS.argsort(dim=1, descending=True, stable=True)
    expected = EXAMPLE_LOGITS.softmax(1).gather(1, order)
    kept = ids.cpu() >= 0
    torch.testing.assert_close(weights.cpu(), torch.where(kept, expected, 0.0), rtol=0, atol=1e-6)
    assert torch.equal(ids.cpu().long(), torch.where(kept, order, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("num_experts", "max_k"), [(1, None), (8, None), (8, 3), (64, 16), (300, 40)])
def test_against_the_reference(
    backend: Backend, num_experts: int, max_k: int | None, score: str, dtype: torch.dtype
) -> None:
    for p in (0.3, 0.9):
        for renormalize in (False, True):
            logits = logits_of(37, num_experts, num_experts, dtype)
            options = {"max_k": max_k, "score": score, "renormalize": renormalize, "scale": 2.5}
            weights, ids = moe_ext.route_top_p(backend.put(logits), p, **options)
            expected_weights, expected_ids = reference.route_top_p(logits, p, **options)
            assert torch.equal(ids.cpu(), expected_ids)
            torch.testing.assert_close(weights.cpu(), expected_weights)


@given(
    num_experts=st.integers(1, 70),
    p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    max_k=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_the_fewest_that_reach_p(num_experts: int, p: float, max_k: int, dtype: torch.dtype, seed: int) -> None:
    logits = logits_of(9, num_experts, seed, dtype)
    max_k = min(max_k, num_experts)
    weights, ids = moe_ext.route_top_p(logits, p, max_k=max_k)
    assert weights.shape == ids.shape == (9, max_k)
    limit = torch.tensor(p, dtype=weights.dtype)
    best = moe_ext.route(logits, max_k)
    for row, row_ids, best_row, best_ids in zip(weights, ids, *best, strict=True):
        n = int((row_ids >= 0).sum())
        assert n >= 1
        assert torch.equal(row_ids[:n], best_ids[:n])  # the best of them, best first
        assert torch.equal(row[:n], best_row[:n])
        assert not row[n:].any()
        assert (row_ids[n:] == -1).all()
        sums = running_sums(row)
        if p < 1:
            assert sums[n - 1] >= limit or n == max_k or not best_row[n:].any()
            assert n == 1 or sums[n - 2] < limit
        else:
            assert n == max(1, int((best_row > 0).sum()))


def test_the_ends_of_p(backend: Backend) -> None:
    logits = logits_of(20, 12, 3)
    logits[:, 5] = -INF
    for p in (0.0, 1e-30):
        assert counts(moe_ext.route_top_p(backend.put(logits), p).topk_ids.cpu()) == [1] * 20
    weights, ids = moe_ext.route_top_p(backend.put(logits), 1.0)
    assert counts(ids.cpu()) == [11] * 20
    assert not (ids == 5).any()
    torch.testing.assert_close(weights.sum(1).cpu(), torch.ones(20))


def test_all_experts_where_rounding_keeps_the_sum_below_p() -> None:
    p = 1 - 2**-24
    short = 0
    for num_experts in range(2, 200):
        weights, ids = moe_ext.route_top_p(torch.zeros(1, num_experts), p)
        short += float(running_sums(weights[0])[-1]) < p
        assert counts(ids) == [num_experts]
    assert short > 0


def test_equal_scores_go_to_the_lower_index(backend: Backend) -> None:
    _, ids = moe_ext.route_top_p(backend.put(torch.zeros(2, 8)), 0.5)
    assert ids.tolist() == [[0, 1, 2, 3, -1, -1, -1, -1]] * 2


def test_weights_are_probabilities_unless_renormalised() -> None:
    logits = logits_of(30, 16, 0)
    weights, ids = moe_ext.route_top_p(logits, 0.6)
    mass = weights.sum(1)
    assert (mass >= 0.6).all()
    assert (mass < 1).all()
    again, same_ids = moe_ext.route_top_p(logits, 0.6, renormalize=True, scale=3.0)
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(again, 3 * weights / mass.unsqueeze(1))


def test_sigmoid_scores_are_added_as_they_are() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, -9.0, -9.0]])
    weights, ids = moe_ext.route_top_p(logits, 0.9, score="sigmoid")
    assert counts(ids) == [2, 1]
    assert weights[0].tolist() == [0.5, 0.5, 0.0]
    assert counts(moe_ext.route_top_p(logits, 1.4, score="sigmoid").topk_ids) == [3, 3]


@pytest.fixture(scope="module")
def portable_bits() -> dict[tuple[torch.dtype, str], moe_ext.Routing]:
    """From the plainest kernel. Made before a test stands on a virtual GPU, where CPU kernels are out of reach."""
    with pinned("portable"):
        return {
            (dtype, score): moe_ext.route_top_p(logits_of(70, 40, 11, dtype), 0.8, max_k=33, score=score)
            for dtype in DTYPES[:3]
            for score in SCORES
        }


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_the_same_bits_everywhere(
    portable_bits: dict[tuple[torch.dtype, str], moe_ext.Routing], backend: Backend, dtype: torch.dtype, score: str
) -> None:
    logits = backend.put(logits_of(70, 40, 11, dtype))
    expected = portable_bits[dtype, score]
    for _ in backend.variations():
        weights, ids = moe_ext.route_top_p(logits, 0.8, max_k=33, score=score)
        assert_same_bits(weights.cpu(), expected.topk_weights, "weights")
        assert torch.equal(ids.cpu(), expected.topk_ids)


@given(num_experts=st.integers(1, 100), p=st.floats(0, 1), renormalize=st.booleans(), seed=st.integers(0, 10**6))
def test_the_same_bits_on_every_instruction_set(num_experts: int, p: float, renormalize: bool, seed: int) -> None:
    logits = logits_of(5, num_experts, seed)
    results = []
    for isa in _C.cpu_isas_available():
        with pinned(isa):
            results.append(moe_ext.route_top_p(logits, p, renormalize=renormalize))
    for weights, ids in results[1:]:
        assert_same_bits(weights, results[0].topk_weights, "weights")
        assert torch.equal(ids, results[0].topk_ids)


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("score", SCORES)
def test_gradcheck(score: str, renormalize: bool) -> None:
    logits = logits_of(6, 7, 2, torch.float64).requires_grad_()

    def weights(logits: Tensor) -> Tensor:
        return moe_ext.route_top_p(logits, 0.8, score=score, renormalize=renormalize, scale=1.5).topk_weights

    assert torch.autograd.gradcheck(weights, (logits,))


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("score", SCORES)
def test_gradient_of_the_reference(backend: Backend, score: str, renormalize: bool) -> None:
    logits = logits_of(19, 24, 5)
    upstream = torch.randn(19, 10)
    options = {"max_k": 10, "score": score, "renormalize": renormalize}
    leaf = backend.put(logits).requires_grad_()
    actual = torch.autograd.grad(moe_ext.route_top_p(leaf, 0.7, **options).topk_weights, leaf, backend.put(upstream))[0]
    truth = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.route_top_p(truth, 0.7, **options)[0], truth, upstream.double())
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("nonfinite", ["propagate", "sanitize"])
def test_nonfinite_logits(backend: Backend, nonfinite: str, renormalize: bool) -> None:
    logits = torch.tensor(
        [[1.0, NAN, 0.0], [INF, 0.0, 1.0], [-INF, -INF, -INF], [-INF, 2.0, -INF], [NAN, NAN, NAN], [0.0, 1.0, 2.0]]
    )
    options = {"nonfinite": nonfinite, "renormalize": renormalize}
    weights, ids = moe_ext.route_top_p(backend.put(logits), 0.9, **options)
    expected_weights, expected_ids = reference.route_top_p(logits, 0.9, **options)
    assert torch.equal(ids.cpu(), expected_ids)
    torch.testing.assert_close(weights.cpu(), expected_weights, equal_nan=True)
    if nonfinite == "sanitize":
        assert counts(ids.cpu()) == [2, 1, 0, 1, 0, 2]
        assert weights.isfinite().all()


@pytest.mark.parametrize("num_experts", [3, 40])
def test_nonfinite_logits_as_errors(torch_threads: int, num_experts: int) -> None:
    logits = torch.zeros(9000, num_experts)
    moe_ext.route_top_p(logits, 0.5, nonfinite="error")
    logits[[4321, 8999], 1] = NAN
    with pytest.raises(ValueError, match=r"moe_ext.route_top_p: router_logits: row 4321"):
        moe_ext.route_top_p(logits, 0.5, nonfinite="error")


def test_rows_that_need_few_and_rows_that_need_many(backend: Backend) -> None:
    """More than the kernel tries first, in neighbourhoods of all lengths, with non-finite rows among them."""
    num_tokens = 40 if backend.is_virtual else 700
    steepness = torch.linspace(0, 9, 7)[torch.randint(7, (num_tokens, 1))]
    logits = steepness * torch.randn(num_tokens, 50)
    logits[3, 4] = NAN
    logits[5] = -INF
    logits[6, 20:] = -INF
    wide = torch.full((num_tokens, 60), 77.0)
    wide[:, 5:55] = logits
    weights, ids = moe_ext.route_top_p(backend.put(wide)[:, 5:55], 0.9, nonfinite="sanitize", renormalize=True)
    expected_weights, expected_ids = reference.route_top_p(logits, 0.9, nonfinite="sanitize", renormalize=True)
    assert torch.equal(ids.cpu(), expected_ids)
    torch.testing.assert_close(weights.cpu(), expected_weights)
    assert {n > 16 for n in counts(expected_ids)} == {True, False}


def test_no_tokens(backend: Backend) -> None:
    weights, ids = moe_ext.route_top_p(backend.put(torch.zeros(0, 5)), 0.5, max_k=2)
    assert weights.shape == ids.shape == (0, 2)


def test_the_experts_take_its_padding() -> None:
    """-1 with a weight of 0 is what fused_experts takes for no expert."""
    x, logits = torch.randn(10, 8), logits_of(10, 4, 1)
    w_gate_up, w_down = torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    weights, ids = moe_ext.route_top_p(logits, 0.7)
    y = moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids)
    assert (ids < 0).any()
    torch.testing.assert_close(y, moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids.clamp(min=0)))


def test_compiled() -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def compiled(logits: Tensor) -> tuple[Tensor, Tensor]:
        return moe_ext.route_top_p(logits, 0.6, max_k=3)

    for num_tokens in (4, 9):
        logits = logits_of(num_tokens, 6, 0)
        for one, other in zip(compiled(logits), moe_ext.route_top_p(logits, 0.6, max_k=3), strict=True):
            assert torch.equal(one, other)


def test_math_of_the_paper() -> None:
    """Equation 3 for one token, spelled out."""
    logits = torch.tensor([[0.1, 1.3, -0.4, 0.9]])
    p = logits.softmax(1)[0].tolist()
    order = sorted(range(4), key=lambda expert: -p[expert])
    n = next(n for n in range(1, 5) if math.fsum(p[e] for e in order[:n]) >= 0.75)
    _, ids = moe_ext.route_top_p(logits, 0.75)
    assert ids[0, :n].tolist() == order[:n]
    assert counts(ids) == [n]
