"""TopP as a selection: the worked example, options, and its place in a router."""

import copy

import pytest
import torch

import moe_ext
from moe_ext.routing import LinearLogits, Router, TopP

LOGITS = torch.tensor([[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]])


def test_worked_example() -> None:
    weights, ids = TopP(4, 0.7)(LOGITS, token_mask=None)
    assert (ids >= 0).sum(1).tolist() == [2, 2, 2, 1, 2, 2]
    assert ids[3].tolist() == [0, -1, -1, -1]
    assert weights[3, 0] >= 0.7
    # The entropy that the paper's second loss pushes down.
    p = LOGITS.softmax(1)
    assert abs(float(-(p * p.log()).sum(1).mean()) - 0.930169) < 1e-6


def test_options_reach_the_op() -> None:
    options = {"score": "sigmoid", "renormalize": True, "scale": 2.0, "nonfinite": "sanitize"}
    actual = TopP(4, 1.3, max_k=3, **options)(LOGITS)
    expected = moe_ext.route_top_p(LOGITS, 1.3, max_k=3, **options)
    assert all(map(torch.equal, actual, expected))


def test_in_a_router() -> None:
    router = Router(LinearLogits(8, 6), TopP(6, 0.5, max_k=4))
    x = torch.randn(10, 8, requires_grad=True)
    weights, ids, logits = router(x)
    assert weights.shape == ids.shape == (10, 4)
    assert logits.shape == (10, 6)
    weights.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert router.logits.weight.grad is not None


def test_compiled() -> None:
    router = Router(LinearLogits(8, 6), TopP(6))
    x = torch.randn(5, 8)
    expected = router(x)
    for actual, other in zip(torch.compile(router, fullgraph=True)(x), expected, strict=True):
        torch.testing.assert_close(actual, other)


def test_copies_and_says_what_it_is() -> None:
    selection = TopP(8, 0.6, max_k=2)
    assert "num_experts=8, p=0.6, max_k=2" in repr(copy.deepcopy(selection))
    assert not selection.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": -0.1}, "p must be in 0..1"),
        ({"p": 1.1}, "p must be in 0..1"),
        ({"p": float("nan")}, "p must be in 0..1"),
        ({"max_k": 0}, "max_k must be in 1..num_experts=4, got 0"),
        ({"max_k": 5}, "max_k must be in 1..num_experts=4, got 5"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopP(4, **arguments)
