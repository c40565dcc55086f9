"""route_with_statistics against the reference, and against the losses that its sums stand for, on every backend."""

from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from moe_ext.losses import load_balancing_loss, router_z_loss
from tests.support.backends import Backend
from tests.support.inputs import make_logits
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = ((1, 1, 1), (9, 8, 2), (33, 128, 8), (12, 257, 6), (70, 5, 5), (3, 1040, 40))
DEEPSEEK_V3 = {"score": "sigmoid", "num_groups": 2, "topk_groups": 1, "group_top": 2, "renormalize": True, "scale": 2.5}


def exact_logits(num_tokens: int, num_experts: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Multiples of 1/64, different ones in each row: the choice is the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(num_experts, generator=generator) for _ in range(num_tokens)]
    return ((torch.stack(rows) - num_experts // 2) / 64).to(dtype)


def weighted_sums(results: tuple[Tensor, ...]) -> Tensor:
    """One tensor of everything that has a gradient; sums as means, so that all of it is of one size."""
    weights, _, score_sums, _, z_sum = results
    return torch.cat((weights.flatten(), torch.cat((score_sums, z_sum.reshape(1))) / weights.shape[0]))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(backend: Backend, size: tuple[int, int, int], dtype: torch.dtype, score: str) -> None:
    num_tokens, num_experts, top_k = size
    check_against_truth(
        lambda router_logits: weighted_sums(moe_ext.route_with_statistics(router_logits, top_k, score=score)),
        lambda router_logits: weighted_sums(reference.route_with_statistics(router_logits, top_k, score=score)),
        lambda seed: {"router_logits": exact_logits(num_tokens, num_experts, dtype, seed)},
        backend=backend,
    )


@pytest.mark.parametrize("options", [{}, {"softmax_after": True}, DEEPSEEK_V3], ids=["plain", "after", "deepseek"])
def test_it_routes_as_route_does(backend: Backend, options: dict[str, Any]) -> None:
    logits = backend.put(make_logits(40, 16, torch.bfloat16))
    plain = moe_ext.route(logits, 4, **options)
    routing = moe_ext.route_with_statistics(logits, 4, **options)
    assert_same_bits(routing.topk_weights, plain.topk_weights, "topk_weights")
    assert_same_bits(routing.topk_ids, plain.topk_ids, "topk_ids")
    counts = torch.bincount(plain.topk_ids.flatten().long(), minlength=16)
    assert torch.equal(routing.expert_counts.long(), counts)


def test_the_losses_they_stand_for(backend: Backend) -> None:
    logits = backend.put(make_logits(50, 12)).requires_grad_()
    routing = moe_ext.route_with_statistics(logits, 3)
    balance = 12 / (3 * 50**2) * (routing.expert_counts * routing.score_sums).sum()
    expected = load_balancing_loss(logits, routing.topk_ids)
    torch.testing.assert_close(balance, expected)
    torch.testing.assert_close(routing.z_sum / 50, router_z_loss(logits))
    for loss, same in ((balance, expected), (routing.z_sum / 50, router_z_loss(logits))):
        (got,), (want,) = torch.autograd.grad(loss, logits, retain_graph=True), torch.autograd.grad(same, logits)
        torch.testing.assert_close(got, want)


def test_rows_without_an_expert_count_nowhere(backend: Backend) -> None:
    logits = make_logits(6, 8)
    logits[2] = -torch.inf
    logits[4, 3] = torch.nan
    results = moe_ext.route_with_statistics(backend.put(logits), 2, nonfinite="sanitize")
    expected = reference.route_with_statistics(logits, 2, nonfinite="sanitize")
    assert results.expert_counts.sum() == 10
    torch.testing.assert_close(results.score_sums.cpu(), expected[2])
    torch.testing.assert_close(results.z_sum.cpu(), expected[4].squeeze(0))


def test_repeatable(backend: Backend) -> None:
    logits = backend.put(make_logits(3000, 24))
    expected = moe_ext.route_with_statistics(logits, 4)
    for variation in backend.variations():
        for name, got, want in zip(expected._fields, moe_ext.route_with_statistics(logits, 4), expected, strict=True):
            assert_same_bits(got, want, f"{variation}: {name}")


def test_nothing_of_tokens_times_experts_is_kept() -> None:
    logits = make_logits(64, 32).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        moe_ext.route_with_statistics(logits, 4)
    assert sorted(kept) == [64 * 4, logits.numel()], "ids, and the logits themselves"


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_gradcheck(score: str) -> None:
    logits = exact_logits(4, 6, torch.float64).mul(20).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: weighted_sums(moe_ext.route_with_statistics(z, 2, score=score, renormalize=True)), logits
    )


def test_raw_logits_sum_to_nothing() -> None:
    with pytest.raises(ValueError, match='score must be one that sums to something, got "none"'):
        moe_ext.route_with_statistics(make_logits(4, 3), 1, score="none")


def test_compiles() -> None:
    logits = make_logits(8, 4).requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return weighted_sums(moe_ext.route_with_statistics(logits, 2)).sum()

    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(logits), logits)
    torch.testing.assert_close(got, torch.autograd.grad(loss(logits), logits))
