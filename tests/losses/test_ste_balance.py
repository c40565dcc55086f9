import math

import pytest
import torch

from moe_ext.losses import load_balancing_loss, straight_through_balance_loss, straight_through_load
from tests.losses.worked_example import logits, topk_ids

F = torch.tensor([5, 4, 2, 1], dtype=torch.float64) / 12


def gradient(loss: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, z)[0]


def test_values_and_gradients_of_the_worked_example() -> None:
    z = logits().requires_grad_()
    squared = straight_through_balance_loss(z, topk_ids())
    assert squared.item() == pytest.approx(0.034722, abs=1e-6)
    # Not to be confused with F.P, which has the same gradient and another value.
    product = load_balancing_loss(z, topk_ids(), convention="load") / 4
    assert product.item() == pytest.approx(0.311915, abs=1e-6)
    expected = [0.005603, -0.001229, -0.002873, -0.001502]
    assert gradient(squared, z)[0].tolist() == pytest.approx(expected, abs=1e-6)
    entropy = straight_through_balance_loss(z, topk_ids(), form="entropy")
    assert entropy.item() == pytest.approx(-1.236685, abs=1e-6)
    expected = [0.019779, -0.001533, -0.010631, -0.007615]
    assert gradient(entropy, z)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_squared_form_has_the_gradient_of_the_balance_loss(score: str, num_sequences: int) -> None:
    z = logits().requires_grad_()
    squared = straight_through_balance_loss(z, topk_ids(), score=score, num_sequences=num_sequences)
    product = load_balancing_loss(z, topk_ids(), score=score, num_sequences=num_sequences) / 4
    torch.testing.assert_close(gradient(squared, z), gradient(product, z), atol=1e-7, rtol=0)


@pytest.mark.parametrize("form", ["squared", "kl"])
def test_zero_at_the_target_and_nowhere_else(form: str) -> None:
    z = logits().requires_grad_()
    at_target = straight_through_balance_loss(z, topk_ids(), form=form, target=F)
    assert at_target.item() == pytest.approx(0, abs=1e-8)
    assert gradient(at_target, z).abs().max() < 1e-8
    assert straight_through_balance_loss(z, topk_ids(), form=form) > 0.03
    assert straight_through_balance_loss(z, topk_ids(), form=form, target=F.flip(0)) > 0.03


def test_divergence_from_uniform_is_the_entropy_form() -> None:
    entropy = straight_through_balance_loss(logits(), topk_ids(), form="entropy")
    kl = straight_through_balance_loss(logits(), topk_ids(), form="kl")
    torch.testing.assert_close(kl, entropy + math.log(4))


@pytest.mark.parametrize("form", ["squared", "kl"])
def test_gradient_is_that_of_the_load_through_any_scores(form: str) -> None:
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    z = logits().requires_grad_()
    loss = straight_through_balance_loss(z, topk_ids(), form=form, target=target, score="sigmoid", normalize=False)
    slope = F - target if form == "squared" else (F / target).log() + 1
    expected = gradient((slope * z.sigmoid().mean(0)).sum(), z)
    torch.testing.assert_close(gradient(loss, z), expected, rtol=1e-6, atol=1e-9)


def test_any_function_of_the_load() -> None:
    z = logits().requires_grad_()
    load = straight_through_load(z, topk_ids())
    torch.testing.assert_close(load.detach(), F[None])
    expected = gradient((torch.tensor([0.0, 1.0, 0.0, 0.0]) * z.softmax(-1).mean(0)).sum(), z)
    torch.testing.assert_close(gradient(load[0, 1], z), expected)
    assert straight_through_load(z, topk_ids(), num_sequences=2).sum(1).tolist() == pytest.approx([1, 1])


def test_an_expert_nobody_chose_has_finite_gradients() -> None:
    z = logits().requires_grad_()
    loss = straight_through_balance_loss(z, topk_ids().clamp(max=2), form="entropy")
    assert gradient(loss, z).isfinite().all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="form must be"):
        straight_through_balance_loss(logits(), topk_ids(), form="l1")
    with pytest.raises(ValueError, match="target must be None"):
        straight_through_balance_loss(logits(), topk_ids(), form="entropy", target=F)
    with pytest.raises(ValueError, match="target must be"):
        straight_through_balance_loss(logits(), topk_ids(), target=F[:3])
    with pytest.raises(TypeError, match="normalize must be a bool"):
        straight_through_load(logits(), topk_ids(), normalize=1)
