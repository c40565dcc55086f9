"""Sinkhorn: the choice from a balanced matrix, the weights from the plain logits."""

import pytest
import torch

from moe_ext.routing import LinearLogits, Router, Sinkhorn

A = torch.tensor(
    [[2, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]], dtype=torch.float64
)


def test_worked_example() -> None:
    module = Sinkhorn(4, tolerance=1e-9, max_iterations=200)
    weights, ids = module(A)
    assert ids.flatten().tolist() == [0, 3, 2, 0, 1, 1]
    torch.testing.assert_close(weights, A.gather(1, ids.long()).sigmoid())
    assert module.eval()(A).topk_ids.flatten().tolist() == [0, 1, 2, 0, 1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_weights_of_several_experts_are_the_softmax(training: bool) -> None:
    weights, ids = Sinkhorn(4, 2).train(training)(A)
    torch.testing.assert_close(weights, A.softmax(1).gather(1, ids.long()))
    if not training:
        assert ids.tolist() == [[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]]


def test_balances_what_the_logits_do_not() -> None:
    logits = torch.randn(512, 8) + torch.linspace(0, 3, 8)
    module = Sinkhorn(8)
    counts, plain = (torch.bincount(m(logits).topk_ids.flatten(), minlength=8) for m in (module, Sinkhorn(8).eval()))
    assert counts.max() < 96
    assert plain.max() > 192


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradient(top_k: int) -> None:
    logits = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: Sinkhorn(4, top_k)(z).topk_weights, logits)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 2])
def test_masked_tokens_change_nothing(top_k: int, training: bool) -> None:
    logits, mask = torch.randn(10, 3), torch.arange(10) % 3 != 1
    spoiled = logits.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    module = Sinkhorn(3, top_k).train(training)
    weights, ids = module(spoiled, token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close((weights[mask], ids[mask]), tuple(module(logits[mask])))
    (grad,) = torch.autograd.grad(weights.square().sum(), spoiled)
    assert grad.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_compiles_as_one_graph(top_k: int) -> None:
    router, x = Router(LinearLogits(8, 4), Sinkhorn(4, top_k)), torch.randn(12, 8)
    torch._dynamo.reset()
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tuple(compiled(x)), tuple(router(x)))


def test_float32_under_autocast() -> None:
    logits = torch.randn(12, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Sinkhorn(4, 2)(logits)
    assert inside.topk_weights.dtype == torch.float32
    torch.testing.assert_close(tuple(inside), tuple(Sinkhorn(4, 2)(logits.float())), rtol=0, atol=0)


def test_errors() -> None:
    for bad, message in (
        (lambda: Sinkhorn(4, 5), r"top_k must be in 1..num_experts=4, got 5"),
        (lambda: Sinkhorn(4, tolerance=float("nan")), "tolerance must be at least 0, got nan"),
        (lambda: Sinkhorn(4, max_iterations=-1), "max_iterations must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    assert "num_experts=4, top_k=1" in repr(Sinkhorn(4))
