"""auction: balanced, close to the best assignment, and the same everywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.assignment import best_assignment
from tests.support.backends import Backend
from tests.support.inputs import strided_variants

raw = torch.ops.moe_ext
INF, NAN = float("inf"), float("nan")


def value(scores: Tensor, expert_ids: Tensor) -> float:
    return float(scores.double().gather(1, expert_ids.cpu().long()[:, None]).sum())


def best_value(scores: Tensor) -> float:
    """Of all assignments with at most ceil(T / E) tokens for an expert."""
    places = -(-scores.shape[0] // scores.shape[1])
    repeated = scores.double().repeat_interleave(places, dim=1)
    return float(repeated.gather(1, best_assignment(repeated)[:, None]).sum())


def epsilon(scores: Tensor) -> float:
    return max(float(scores.max() - scores.min()) / 50, 1e-4)


def check(backend: Backend, scores: Tensor, **options: object) -> Tensor:
    """Equal to the reference; returns what the backend said, on the CPU."""
    actual = moe_ext.auction(backend.put(scores), **backend.put(options))
    assert actual.dtype == torch.int32
    assert torch.equal(actual.cpu(), reference.auction(scores, **options))
    return actual.cpu()


def test_worked_example(backend: Backend) -> None:
    """Everybody's first choice would be worth 10, with two tokens at expert 1 and none at 3."""
    scores = torch.tensor([[1.0, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0]])
    experts = check(backend, scores)
    assert experts.tolist() == [3, 2, 0, 1]
    assert value(scores, experts) == 9.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_experts"), [(32, 4), (64, 8), (10, 4), (3, 7), (5, 1), (40, 40), (1, 1), (90, 20)]
)
def test_balanced_and_nearly_optimal(backend: Backend, num_tokens: int, num_experts: int, dtype: torch.dtype) -> None:
    scores = torch.randn(num_tokens, num_experts).to(dtype)
    experts = check(backend, scores)
    counts = torch.bincount(experts, minlength=num_experts)
    assert counts.max() <= -(-num_tokens // num_experts)
    assert counts.sum() == num_tokens
    assert value(scores, experts) >= best_value(scores) - num_tokens * epsilon(scores) - 1e-6


@pytest.mark.parametrize("popular", [1, 3])
def test_a_popular_expert_gets_no_more_than_its_share(backend: Backend, popular: int) -> None:
    """All tokens want the same experts most: prices have to rise a long way."""
    scores = torch.rand(64, 8)
    scores[:, :popular] += 5
    experts = check(backend, scores)
    assert torch.bincount(experts, minlength=8).tolist() == [8] * 8
    assert value(scores, experts) >= best_value(scores) - 64 * epsilon(scores)


@given(data=st.data())
def test_any_scores(backend: Backend, data: st.DataObject) -> None:
    num_tokens, num_experts = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
    cells = num_tokens * num_experts
    drawn = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.25, 1e6, 3e38, -3e38, INF, -INF, NAN])
    scores = torch.tensor(data.draw(st.lists(drawn, min_size=cells, max_size=cells))).view(num_tokens, num_experts)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens))).bool()
    experts = check(backend, scores, token_mask=mask, max_rounds=data.draw(st.sampled_from([0, 1, 3, 1000])))
    assert (experts[~mask] == -1).all()
    assert (experts[mask] >= 0).all()
    assert torch.bincount(experts[mask], minlength=num_experts).max() <= -(-int(mask.sum()) // num_experts)


def test_ties_go_to_the_lower_index(backend: Backend) -> None:
    assert check(backend, torch.zeros(6, 3)).tolist() == [0, 0, 1, 1, 2, 2]


def test_scores_that_are_not_finite_count_as_the_lowest(backend: Backend) -> None:
    scores = torch.randn(12, 3)
    replaced = scores.clone()
    scores[2, 1], scores[5, 0], scores[7, 2] = NAN, INF, -INF
    replaced[2, 1] = replaced[5, 0] = replaced[7, 2] = scores[scores.isfinite()].min()
    assert torch.equal(check(backend, scores), check(backend, replaced))


def test_what_the_last_round_leaves_takes_what_is_left(backend: Backend) -> None:
    scores = torch.rand(30, 3) + torch.tensor([9.0, 0, 0])
    for max_rounds in (0, 1, 2):
        assert torch.bincount(check(backend, scores, max_rounds=max_rounds)).tolist() == [10, 10, 10]


@given(st.integers(0, 1000))
def test_a_permutation_of_the_tokens_permutes_the_experts(backend: Backend, seed: int) -> None:
    if not backend.takes(seed):
        return
    generator = torch.Generator().manual_seed(seed)
    scores, order = torch.rand(24, 4, generator=generator), torch.randperm(24, generator=generator)
    experts = moe_ext.auction(backend.put(scores)).cpu()
    assert torch.equal(moe_ext.auction(backend.put(scores[order])).cpu(), experts[order])


def test_scores_far_from_zero_lose_no_digits(backend: Backend) -> None:
    scores = torch.randint(0, 64, (32, 4)) / 64.0
    assert torch.equal(check(backend, scores + 2.0**16), check(backend, scores))


@pytest.mark.parametrize("num_tokens", [200, 6000])
def test_many_tokens(backend: Backend, torch_threads: int, num_tokens: int) -> None:
    scores = torch.randn(num_tokens, 50)
    experts = moe_ext.auction(backend.put(scores)).cpu()
    assert torch.bincount(experts).tolist() == [num_tokens // 50] * 50
    if num_tokens == 200:
        assert value(scores, experts) >= best_value(scores) - num_tokens * epsilon(scores)


def test_strided_scores(backend: Backend) -> None:
    scores = backend.put(torch.randn(20, 5))
    expected = moe_ext.auction(scores)
    for _, variant in strided_variants(scores):
        assert torch.equal(moe_ext.auction(variant), expected)


def test_repeats_to_the_bit(backend: Backend) -> None:
    scores = backend.put(torch.randn(100, 6).bfloat16())
    expected = moe_ext.auction(scores)
    for variation in backend.variations():
        assert torch.equal(moe_ext.auction(scores), expected), variation


def test_wrong_raw_arguments_are_errors(backend: Backend) -> None:
    scores = backend.put(torch.randn(8, 4))
    for bad, message in (
        (lambda: raw.auction(scores.half(), None, 9), "scores must be Float or Double"),
        (lambda: raw.auction(scores[0], None, 9), r"scores must be \[T, E\]"),
        (lambda: raw.auction(scores, scores[:, 0], 9), "token_mask must be Bool"),
        (lambda: raw.auction(scores, None, -1), "max_rounds must be at least 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()
