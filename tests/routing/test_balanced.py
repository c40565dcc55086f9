"""Balanced: an assignment while training, the best expert afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_ext.routing import Balanced, LinearLogits, Router, orthogonal_centroids_

A = torch.tensor([[1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0]], dtype=torch.float64)


def test_worked_example() -> None:
    module = Balanced(4)
    weights, ids = module(A)
    assert ids.flatten().tolist() == [3, 2, 0, 1]
    torch.testing.assert_close(weights.flatten(), torch.tensor([2.0, 2, 3, 2], dtype=torch.float64).sigmoid())
    weights, ids = module.eval()(A)
    assert ids.flatten().tolist() == [1, 2, 0, 1]
    torch.testing.assert_close(weights.flatten(), torch.tensor([3.0, 2, 3, 2], dtype=torch.float64).sigmoid())


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 5))
def test_every_expert_has_its_share(seed: int, share: int, rest: int) -> None:
    logits = torch.randn(6 * share + rest, 6, generator=torch.Generator().manual_seed(seed))
    counts = torch.bincount(Balanced(6)(logits).topk_ids.flatten(), minlength=6)
    assert counts.sum() == logits.shape[0]
    assert counts.max() <= share + (rest > 0)
    if rest == 0:
        assert counts.tolist() == [share] * 6


def test_gradient_is_that_of_the_sigmoid() -> None:
    logits = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: Balanced(3)(z).topk_weights, logits)
    weights, ids = Balanced(3)(logits)
    (grad,) = torch.autograd.grad(weights.sum(), logits)
    slope = (weights * (1 - weights)).detach()
    torch.testing.assert_close(grad, torch.zeros_like(grad).scatter(1, ids.long(), slope))


@pytest.mark.parametrize("training", [True, False])
def test_masked_tokens_get_nobody(training: bool) -> None:
    logits, mask = torch.randn(10, 3), torch.arange(10) % 3 != 1
    logits[~mask] = float("nan")
    leaf = logits.requires_grad_()
    weights, ids = Balanced(3).train(training)(leaf, token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    assert (ids[mask] >= 0).all()
    if training:
        assert torch.bincount(ids[mask].flatten()).max() <= 3  # seven tokens for three experts
    (grad,) = torch.autograd.grad(weights.sum(), leaf)
    assert grad.isfinite().all()


def test_logits_that_are_not_finite_still_balance() -> None:
    logits = torch.randn(12, 3)
    logits[0, 0], logits[1, 1], logits[2] = float("nan"), float("inf"), float("-inf")
    assert torch.bincount(Balanced(3)(logits).topk_ids.flatten()).tolist() == [4, 4, 4]


def test_centroids_are_orthogonal() -> None:
    weight = orthogonal_centroids_(LinearLogits(16, 4)).weight
    torch.testing.assert_close(weight @ weight.T, 0.01 * torch.eye(4))
    torch.testing.assert_close((orthogonal_centroids_(LinearLogits(16, 4), gain=1.0).weight ** 2).sum(1), torch.ones(4))
    with pytest.raises(TypeError, match="must have a weight"):
        orthogonal_centroids_(nn.ReLU())


def test_compiles_as_one_graph() -> None:
    router, x = Router(LinearLogits(8, 4), Balanced(4)), torch.randn(12, 8)
    torch._dynamo.reset()
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tuple(compiled(x)), tuple(router(x)))


def test_float32_under_autocast() -> None:
    logits = torch.randn(12, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Balanced(4)(logits)
    assert inside.topk_weights.dtype == torch.float32
    torch.testing.assert_close(tuple(inside), tuple(Balanced(4)(logits.float())), rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        Balanced(0)
    with pytest.raises(ValueError, match="max_rounds must be at least 0, got -1"):
        Balanced(4, max_rounds=-1)
    assert "num_experts=4, max_rounds=1000" in repr(Balanced(4))
