"""expert_choice against the reference, and what it promises, on every backend."""

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


def check(backend: Backend, scores: Tensor, capacity: int, **options: object) -> moe_ext.ExpertChoices:
    """Equal to the reference; returns what the backend said."""
    actual = moe_ext.expert_choice(backend.put(scores), capacity, **backend.put(options))
    expected = reference.expert_choice(scores, capacity, **options)
    for name, got, want in zip(actual._fields, actual, expected, strict=True):
        assert got.dtype == torch.int32
        assert torch.equal(got.cpu(), want), name
    return actual


def test_worked_example(backend: Backend) -> None:
    """Token 1 and 5 have the same best score with expert 1; token 4 is chosen by nobody."""
    # The softmax of [[2,1,0,-1],[1,3,0,2],[.5,.5,2,-2],[3,0,1,1],[1,2,0,0],[2,3,1,0]].
    scores = torch.tensor([
        [0.643914, 0.236883, 0.087144, 0.032059], [0.087144, 0.643914, 0.032059, 0.236883],
        [0.152351, 0.152351, 0.682791, 0.012506], [0.757313, 0.037704, 0.102491, 0.102491],
        [0.224515, 0.610296, 0.082595, 0.082595], [0.236883, 0.643914, 0.087144, 0.032059],
    ])  # fmt: skip
    token_ids, topk_ids = check(backend, scores, 2)
    assert token_ids.tolist() == [[[3, 0], [1, 5], [2, 3], [1, 3]]]
    assert (topk_ids >= 0).sum(1).tolist() == [1, 2, 1, 3, 0, 1]
    assert topk_ids[3].tolist() == [0, 2, 3, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "num_groups", "capacity"),
    [(64, 8, 1, 16), (60, 5, 3, 7), (33, 17, 1, 33), (48, 40, 4, 1), (7, 1, 1, 3), (300, 16, 2, 20), (16, 3, 1, 0)],
)
def test_shapes(
    backend: Backend, num_tokens: int, num_experts: int, num_groups: int, capacity: int, dtype: torch.dtype
) -> None:
    scores = torch.randn(num_tokens, num_experts).to(dtype)  # 16 bits: with ties
    token_ids, _ = check(backend, scores, capacity, num_groups=num_groups)
    assert token_ids.shape == (num_groups, num_experts, capacity)
    mask = torch.rand(num_tokens) < 0.6
    check(backend, scores, capacity, num_groups=num_groups, token_mask=mask, max_experts_per_token=1)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "capacity"), [(20000, 3, 5000), (9000, 20, 100), (5000, 1, 4999)]
)
def test_many_tokens(backend: Backend, torch_threads: int, num_tokens: int, num_experts: int, capacity: int) -> None:
    """Full lists, rows cut between threads, entries past shared memory."""
    check(backend, torch.randn(num_tokens, num_experts), capacity)


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "every eighth", "nan"])
@pytest.mark.parametrize("num_tokens", [700, 2048])
def test_orders_that_defeat_guesses_of_a_threshold(backend: Backend, num_tokens: int, order: str) -> None:
    """Lists that fill again and again, and samples that say nothing about the rest."""
    tokens = torch.arange(float(num_tokens))
    column = {
        "rising": tokens,
        "falling": -tokens,
        "equal": torch.zeros(num_tokens),
        "every eighth": torch.where(tokens % 8 == 0, 9000 - tokens, tokens),
        "nan": torch.where(tokens % 3 == 0, NAN, tokens),
    }[order]
    scores = torch.stack([column, -column, torch.randn(num_tokens)], dim=1)
    for capacity in (9, num_tokens // 7, num_tokens // 3):
        check(backend, scores, capacity)
    check(backend, scores, num_tokens // 7, token_mask=tokens % 8 != 0)


def test_a_threshold_of_nan_lets_nothing_else_past(backend: Backend) -> None:
    """NaN where a sample of the rows sees it, and nothing that can be chosen anywhere else."""
    scores = torch.full((1024, 2), -INF)
    scores[::4][:100] = NAN
    check(backend, scores, 256)


@given(data=st.data())
def test_any_scores(backend: Backend, data: st.DataObject) -> None:
    num_groups, size, num_experts = (data.draw(st.integers(1, high)) for high in (3, 12, 6))
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, INF, -INF, NAN])
    count = num_groups * size
    rows = data.draw(st.lists(value, min_size=count * num_experts, max_size=count * num_experts))
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))
    check(
        backend,
        torch.tensor(rows).view(count, num_experts),
        data.draw(st.integers(0, size)),
        num_groups=num_groups,
        token_mask=None if mask is None else torch.tensor(mask),
        max_experts_per_token=data.draw(st.integers(1, num_experts)),
    )


def test_nan_of_either_sign_ranks_above_infinity(backend: Backend) -> None:
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    scores = torch.cat([torch.tensor([1.0, INF]), negative, torch.tensor([NAN, -INF])])[:, None]
    assert check(backend, scores, 5).token_ids.flatten().tolist() == [2, 3, 1, 0, -1]


def test_masked_tokens_are_never_chosen(backend: Backend) -> None:
    scores, mask = torch.randn(50, 4), torch.arange(50) % 7 == 0
    scores[~mask] = 100.0
    token_ids, topk_ids = check(backend, scores, 12, token_mask=mask)
    assert (token_ids >= 0).sum(2).tolist() == [[8, 8, 8, 8]]
    assert (topk_ids.cpu()[~mask] == -1).all()


@given(st.integers(0, 1000))
def test_a_permutation_of_the_tokens_permutes_the_choice(backend: Backend, seed: int) -> None:
    if not backend.takes(seed):
        return
    generator = torch.Generator().manual_seed(seed)
    scores, order = torch.rand(40, 6, generator=generator), torch.randperm(40, generator=generator)
    token_ids, topk_ids = moe_ext.expert_choice(backend.put(scores), 11)
    permuted_tokens, permuted_ids = moe_ext.expert_choice(backend.put(scores[order]), 11)
    assert torch.equal(order[permuted_tokens.cpu().long()], token_ids.cpu().long())
    assert torch.equal(permuted_ids.cpu(), topk_ids.cpu()[order])
    assert (token_ids >= 0).all()


def test_no_tokens(backend: Backend) -> None:
    token_ids, topk_ids = check(backend, torch.randn(0, 4), 0)
    assert (token_ids.shape, topk_ids.shape) == ((1, 4, 0), (0, 4))


def test_strided_scores(backend: Backend) -> None:
    scores = backend.put(torch.randn(40, 12))
    expected = moe_ext.expert_choice(scores, 9)
    for _, variant in strided_variants(scores):
        actual = moe_ext.expert_choice(variant, 9)
        assert all(map(torch.equal, actual, expected))


def test_repeats_to_the_bit(backend: Backend) -> None:
    scores = backend.put(torch.randn(600, 20).bfloat16())
    expected = moe_ext.expert_choice(scores, 50)
    for variation in backend.variations():
        assert all(map(torch.equal, moe_ext.expert_choice(scores, 50), expected)), variation


def test_wrong_raw_arguments_are_errors(backend: Backend) -> None:
    scores, mask = backend.put((torch.randn(8, 4), torch.ones(8, dtype=torch.bool)))
    for bad, message in (
        (lambda: raw.expert_choice(scores.bfloat16(), 2, 1, None, 4), "scores must be Float or Double"),
        (lambda: raw.expert_choice(scores[0], 2, 1, None, 4), r"scores must be \[T, E\]"),
        (lambda: raw.expert_choice(scores, 2, 3, None, 4), "num_groups must divide 8"),
        (lambda: raw.expert_choice(scores, 5, 2, None, 4), "capacity must be 0 .. 4"),
        (lambda: raw.expert_choice(scores, 2, 1, mask[1:], 4), "token_mask must have T = 8"),
        (lambda: raw.expert_choice(scores, 2, 1, mask.int(), 4), "token_mask must be Bool"),
        (lambda: raw.expert_choice(scores, 2, 1, None, 5), "max_experts_per_token must be 1 .. 4"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()
