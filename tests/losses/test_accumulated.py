import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_ext.losses import (
    AccumulatedRouting,
    importance_loss,
    load_balancing_loss,
    router_z_loss,
    topk_probability_loss,
)
from tests.losses.worked_example import logits, topk_ids


def weights(z: Tensor) -> Tensor:
    return z.gather(1, topk_ids().long()[: z.shape[0]]).softmax(-1)


def test_two_passes_are_one_of_all_tokens() -> None:
    routing = AccumulatedRouting(4)
    w = weights(logits())
    for rows in (slice(0, 2), slice(2, 6)):
        routing.add(logits()[rows], w[rows], topk_ids()[rows])
    torch.testing.assert_close(routing.importance_loss(), importance_loss(w, topk_ids(), 4, correction=1))
    assert routing.importance_loss().item() == pytest.approx(0.511243, abs=1e-6)
    torch.testing.assert_close(routing.load_balancing_loss(), load_balancing_loss(logits(), topk_ids()))
    assert routing.load_balancing_loss().item() == pytest.approx(1.247661, abs=1e-6)
    torch.testing.assert_close(routing.router_z_loss(), router_z_loss(logits()))
    mass = logits()[:2].softmax(-1).mean(0) + logits()[2:].softmax(-1).mean(0)
    torch.testing.assert_close(routing.topk_probability_loss(2), mass.sort().values[:2].square().sum())
    routing.reset()
    with pytest.raises(RuntimeError, match="nothing was added"):
        routing.router_z_loss()


def test_sentinels_and_padding() -> None:
    z, ids, w = logits(), topk_ids(), weights(logits())
    mask = torch.tensor([True, True, False, True, True, True])
    z[2], w[2] = torch.nan, torch.nan
    ids[0, 1] = -1
    routing = AccumulatedRouting(4)
    routing.add(z, w, ids, token_mask=mask)
    expected = importance_loss(w[mask], ids[mask], 4, correction=1)
    torch.testing.assert_close(routing.importance_loss(), expected)
    torch.testing.assert_close(routing.router_z_loss(), router_z_loss(logits()[mask]))
    torch.testing.assert_close(
        routing.load_balancing_loss(), load_balancing_loss(logits()[mask], ids[mask], convention="load")
    )


def test_a_token_without_an_expert_leaves_all_sums() -> None:
    z, ids = logits(), topk_ids()
    z[2], ids[2] = torch.nan, -1
    keep = torch.arange(6) != 2
    routing, expected = AccumulatedRouting(4), AccumulatedRouting(4)
    routing.add(z, weights(z), ids)
    expected.add(logits()[keep], weights(logits())[keep], topk_ids()[keep])
    for name in ("importance_loss", "load_balancing_loss", "router_z_loss"):
        torch.testing.assert_close(getattr(routing, name)(), getattr(expected, name)())
    torch.testing.assert_close(routing.topk_probability_loss(2), expected.topk_probability_loss(2))


def test_topk_loss_of_the_worked_example() -> None:
    a = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64, requires_grad=True)
    loss = topk_probability_loss(a, 2)
    assert loss.item() == pytest.approx(0.025, abs=1e-6)
    assert torch.autograd.grad(loss, a)[0].tolist() == pytest.approx([0.3, 0, 0.1, 0])
    assert topk_probability_loss(a, 4) == 0
    assert topk_probability_loss(a, 0).item() == pytest.approx(a.square().sum().item())


def test_gradcheck() -> None:
    def losses(z: Tensor) -> tuple[Tensor, ...]:
        routing = AccumulatedRouting(4)
        routing.add(z[:3], weights(z[:3]), topk_ids()[:3])
        routing.add(z[3:], weights(z[3:]), topk_ids()[3:])
        return (
            routing.importance_loss(correction=0),
            routing.load_balancing_loss(),
            routing.router_z_loss(),
            routing.topk_probability_loss(2),
        )

    assert gradcheck(losses, logits().requires_grad_())


def test_errors() -> None:
    routing = AccumulatedRouting(4)
    with pytest.raises(ValueError, match="router_logits must be"):
        routing.add(logits()[:, :3], weights(logits()), topk_ids())
    with pytest.raises(ValueError, match="topk_weights must be"):
        routing.add(logits(), weights(logits())[:, :1], topk_ids())
    with pytest.raises(ValueError, match="limit must be at most 4"):
        topk_probability_loss(torch.ones(4), 5)
