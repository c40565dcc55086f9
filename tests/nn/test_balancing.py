"""Auxiliary losses, metrics and the bias update, as the layer applies them."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_ext.losses import load_balancing_loss, router_z_loss
from moe_ext.nn import MoE, routing_metrics
from tests.losses.worked_example import COUNTS, logits, topk_ids

H, INTERMEDIATE, E, K = 12, 8, 8, 3


def worked_example(**options: object) -> tuple[MoE, Tensor]:
    """A layer whose router passes x through, and the x whose logits are those of the worked example."""
    layer = MoE(4, 3, 4, 2, **options).double()
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4))
    return layer, logits()


@pytest.mark.parametrize(
    ("options", "balance"),
    [
        ({}, 1.247661),
        ({"load_balancing_convention": "per_token"}, 2.495322),
        ({"load_balancing_scope": "sequence"}, 1.269861),
        ({"score": "sigmoid"}, 1.095030),
    ],
    ids=str,
)
def test_losses_of_the_worked_example(options: dict[str, object], balance: float) -> None:
    layer, x = worked_example(load_balancing_coef=0.01, z_loss_coef=0.001, **options)
    losses = layer(x.view(2, 3, 4), return_losses=True).losses
    assert losses.load_balancing.item() == pytest.approx(balance, abs=1e-6)
    assert losses.router_z.item() == pytest.approx(8.710072, abs=1e-6)
    assert losses.total.item() == pytest.approx(0.01 * balance + 0.001 * 8.710072, abs=1e-8)


def test_counts_of_the_unbiased_scores() -> None:
    layer, x = worked_example(score="sigmoid", aux_loss_free=True, load_balancing_counts="unbiased")
    layer.router.expert_bias.copy_(torch.tensor([-5.0, -5.0, 5.0, 5.0]))
    out = layer(x, return_losses=True, return_metrics=True)
    assert out.metrics.counts.tolist() == [0, 0, 6, 6]
    assert out.losses.load_balancing.item() == pytest.approx(1.095030, abs=1e-6)


def test_gradient_is_that_of_the_explicit_sum() -> None:
    torch.manual_seed(1)
    carried = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.3, z_loss_coef=0.2).double()
    torch.manual_seed(1)
    explicit = MoE(H, INTERMEDIATE, E, K).double()
    x = torch.randn(20, H, dtype=torch.float64, requires_grad=True)

    y = carried(x)
    assert torch.equal(y, explicit(x))
    (grad_x,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    y.square().sum().backward()

    _, ids, router_logits = explicit.router(x)
    auxiliary = 0.3 * load_balancing_loss(router_logits, ids) + 0.2 * router_z_loss(router_logits)
    loss = explicit(x).square().sum() + auxiliary
    torch.testing.assert_close(grad_x, torch.autograd.grad(loss, x, retain_graph=True)[0])
    loss.backward()
    for (name, a), b in zip(carried.named_parameters(), explicit.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    # The losses do matter here.
    (without,) = torch.autograd.grad(explicit(x).square().sum(), explicit.router.weight)
    assert not torch.allclose(without, carried.router.weight.grad, rtol=1e-3)


def test_returned_losses_are_not_added_as_well() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.3, z_loss_coef=0.2)
    x = torch.randn(20, H)
    out = layer(x, return_losses=True)
    (grad,) = torch.autograd.grad(out.y.sum() * 0, layer.router.weight, retain_graph=True)
    assert (grad == 0).all()
    out.losses.total.backward()
    assert (layer.router.weight.grad != 0).any()


def test_scale_and_evaluation_mode() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.3)
    x = torch.randn(20, H)

    def gradient() -> Tensor:
        return torch.autograd.grad(layer(x).sum() * 0, layer.router.weight)[0]

    once = gradient()
    assert (once != 0).any()
    layer.auxiliary_loss_scale = 256.0
    torch.testing.assert_close(gradient(), 256 * once)
    layer.eval()
    assert (gradient() == 0).all()
    assert layer(x, return_losses=True).losses.total > 0


def test_metrics_of_the_worked_example() -> None:
    layer, x = worked_example(renormalize=True)
    metrics = layer(x, return_metrics=True).metrics
    assert metrics.counts.tolist() == COUNTS
    expected = {
        "max_violation": 2 / 3,
        "min_violation": -2 / 3,
        "load_cv": 0.527046,
        "load_entropy": 1.236685,
        "unused_experts": 0,
        "router_entropy": 0.930169,
        "dropped_slots": 0,
        "dropped_tokens": 0,
        "weight_sum": 1,
    }
    for name, value in expected.items():
        assert getattr(metrics, name).item() == pytest.approx(value, abs=1e-6), name
    assert metrics.load.tolist() == pytest.approx([count / 12 for count in COUNTS])
    p = logits().softmax(-1).mean(0)
    assert metrics.mean_probability_entropy.item() == pytest.approx(-(p * p.log()).sum().item())
    assert not any(tensor.requires_grad for tensor in metrics)


def test_metrics_with_sentinels() -> None:
    ids = topk_ids()
    ids[0] = -1
    ids[1, 1] = 7
    z = logits()
    z[0] = float("nan")
    weights = torch.full((6, 2), 0.5)
    metrics = routing_metrics(z, ids, weights)
    assert metrics.counts.tolist() == [4, 3, 2, 0]
    assert metrics.unused_experts == 1
    assert metrics.dropped_slots.item() == pytest.approx(3 / 12)
    assert metrics.dropped_tokens.item() == pytest.approx(1 / 6)
    assert metrics.weight_sum.item() == pytest.approx(4.5 / 5)
    assert metrics.router_entropy.isfinite()
    assert routing_metrics(logits(), topk_ids()).weight_sum.isnan()
    assert routing_metrics(logits()[:0], topk_ids()[:0]).unused_experts == 4


def test_bias_update_of_the_worked_example() -> None:
    layer, x = worked_example(aux_loss_free=True)
    # Half of the tokens in each of two accumulation steps.
    layer(x[:3])
    layer(x[3:])
    assert layer.expert_counts.tolist() == COUNTS
    layer.update_expert_bias()
    assert layer.router.expert_bias.tolist() == pytest.approx([-1e-3, -1e-3, 1e-3, 1e-3])
    assert layer.expert_counts.tolist() == [0, 0, 0, 0]
    layer.router.expert_bias.zero_()
    layer(x)
    layer.update_expert_bias(mode="rms")
    assert layer.router.expert_bias.tolist() == pytest.approx([-0.001265, -0.000632, 0.000632, 0.001265], abs=1e-6)
    layer.eval()(x)
    assert layer.expert_counts.tolist() == [0, 0, 0, 0]
    with pytest.raises(RuntimeError, match="aux_loss_free=False"):
        MoE(H, INTERMEDIATE, E, K).update_expert_bias()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpoint_counts_once(use_reentrant: bool, compiled: bool) -> None:
    layer, x = worked_example(aux_loss_free=True)
    torch._dynamo.reset()
    forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    checkpoint(forward, x.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
    assert layer.expert_counts.tolist() == COUNTS
    layer.apply_expert_counts(1.0, "proportional")
    assert layer.router.expert_bias.tolist() == [3 - count for count in COUNTS]


def collapsed(**options: object) -> MoE:
    """A layer that sends (nearly) every token to the same K experts."""
    layer = MoE(H, INTERMEDIATE, E, K, score="sigmoid", router_bias=True, **options)
    with torch.no_grad():
        layer.router.bias[:K] = 3.0
    return layer


def test_bias_update_recovers_from_collapse() -> None:
    layer = collapsed(aux_loss_free=True)
    x = torch.randn(512, H)
    before = layer(x, return_metrics=True).metrics
    assert before.max_violation > 1.5
    weights_before = {name: p.clone() for name, p in layer.named_parameters()}
    for _ in range(300):
        with torch.no_grad():
            layer(x)
        layer.update_expert_bias(rate=5e-3)
    after = layer(x, return_metrics=True).metrics
    assert after.max_violation < 0.1
    assert after.unused_experts == 0
    # By the bias alone.
    assert all(torch.equal(p, weights_before[name]) for name, p in layer.named_parameters())


def test_loss_recovers_from_collapse() -> None:
    layer = collapsed(load_balancing_coef=1.0)
    x = torch.randn(512, H)
    assert layer(x, return_metrics=True).metrics.max_violation > 1.5
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        # No main loss at all: what moves the router came through y.
        (0 * layer(x)).sum().backward()
        optimizer.step()
    assert layer(x, return_metrics=True).metrics.max_violation < 0.3
