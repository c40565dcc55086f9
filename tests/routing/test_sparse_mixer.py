"""SparseMixer by hand, and what sampling does to value and gradient."""

import pytest
import torch

from moe_ext.routing import SparseMixer

# With a margin of 0.1, logits within a fifth of the best remain.
Z = [[2.0, 1.7, 1.0, 0.9]]


def test_evaluation_by_hand() -> None:
    selection = SparseMixer(4, margin=0.1).eval()
    weights, ids = selection(torch.tensor(Z, dtype=torch.float64))
    assert ids.tolist() == [[0, 1]]
    # First 2.0 and 1.7 remain (0.3 / 2 < 0.2 < 1 / 2), then 1.7 alone (0.7 / 1.7 > 0.2).
    first = torch.tensor([2.0, 1.7], dtype=torch.float64).softmax(0)[0]
    torch.testing.assert_close(weights, torch.tensor([[first, 1.0]], dtype=torch.float64))
    # The third's rivals lie within (0.1 / 1 < 0.2).
    third = SparseMixer(4, 3, margin=0.1).eval()(torch.tensor(Z, dtype=torch.float64))
    assert third.topk_ids.tolist() == [[0, 1, 2]]
    assert third.topk_weights[0, 2].item() == pytest.approx(torch.tensor([1.0, 0.9]).softmax(0)[0].item())


def test_training_samples_and_takes_a_third_three_times_of_four() -> None:
    draws = 8000
    p = torch.tensor([2.0, 1.7]).softmax(0)
    weights, ids = SparseMixer(4, 1, margin=0.1)(torch.tensor(Z).repeat(draws, 1))
    second = ids[:, 0] == 1
    assert ((ids[:, 0] == 0) | second).all()
    assert second.float().mean().item() == pytest.approx(p[1].item(), abs=0.025)
    torch.testing.assert_close(weights[~second], p[0].expand(int((~second).sum()), 1))
    full = torch.isclose(weights[second], p[1])
    assert torch.isclose(weights[second], p[1] / 3)[~full].all()
    assert full.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_gradient_is_that_of_the_whole_weight() -> None:
    z = torch.tensor(Z, dtype=torch.float64).repeat(64, 1).requires_grad_()
    weights, ids = SparseMixer(4, 1, margin=0.1)(z)
    (grad,) = torch.autograd.grad(weights.sum(), z)
    p = torch.tensor([2.0, 1.7], dtype=torch.float64).softmax(0)
    for row, expert in enumerate(ids[:, 0].tolist()):
        expected = p[expert] * (torch.eye(2, dtype=torch.float64)[expert] - p)
        torch.testing.assert_close(grad[row, :2], expected)
        assert (grad[row, 2:] == 0).all()


def test_gradcheck_distinct_ids_and_one_graph() -> None:
    selection = SparseMixer(6, 3, margin=0.2)
    z = torch.linspace(1, 2, 30, dtype=torch.float64)[torch.randperm(30)].reshape(5, 6).requires_grad_()
    assert all(len(set(row)) == 3 for row in selection(z).topk_ids.tolist())
    torch.manual_seed(0)
    actual = torch.compile(selection, fullgraph=True, backend="aot_eager")(z)
    torch.manual_seed(0)
    for a, b in zip(actual, selection(z), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda z: selection.eval()(z).topk_weights, z)


def test_errors() -> None:
    with pytest.raises(ValueError, match="top_k must be in 1"):
        SparseMixer(4, 5)
    with pytest.raises(ValueError, match="margin must be at least 0"):
        SparseMixer(4, margin=-1.0)
