import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_ext.losses import load_loss, selection_probability
from tests.losses.worked_example import logits

STD = math.log(2)
NOISE = [
    *([0.1, -0.2, 0.3, 0], [0, 0.5, -0.1, 0.2], [-0.3, 0.1, 0, 0.4]),
    *([0.2, -0.1, 0.1, 0], [0, -0.5, 0.6, 0.1], [0.3, 0.2, -0.4, 0.1]),
]


def noise() -> Tensor:
    return torch.tensor(NOISE, dtype=torch.float64)


def test_worked_example() -> None:
    z = logits()
    noisy = z + STD * noise()
    p = selection_probability(z, noisy, STD, 2)
    assert p[0].tolist() == pytest.approx([0.995137, 0.873417, 0.106990, 0.003622], abs=1e-6)
    assert p.sum(0).tolist() == pytest.approx([4.271191, 4.539172, 1.716384, 1.464622], abs=1e-6)
    assert load_loss(z, noisy, STD, 2).item() == pytest.approx(0.222264, abs=1e-6)
    assert load_loss(z, noisy, STD, 2, correction=1).item() == pytest.approx(0.296353, abs=1e-6)


def test_vmoe() -> None:
    z, std = logits(), 0.25
    noisy = z + std * noise()
    threshold = noisy.sort(dim=1, descending=True).values[:, 1:2]
    expected = 1 - 0.5 * (1 + torch.erf((threshold - z) / std / math.sqrt(2)))
    p = selection_probability(z, noisy, std, 2, exclude_self=False)
    torch.testing.assert_close(p, expected)
    mean = expected.mean(0)
    loss = load_loss(z, noisy, std, 2, exclude_self=False)
    torch.testing.assert_close(loss, (mean.std(correction=0) / mean.mean()) ** 2)


def test_gradients_through_logits_threshold_and_deviation() -> None:
    def loss(z: Tensor, raw_std: Tensor, exclude_self: bool, mask: Tensor | None) -> Tensor:
        std = torch.nn.functional.softplus(raw_std)
        return load_loss(z, z + std * noise(), std, 2, exclude_self=exclude_self, num_sequences=2, token_mask=mask)

    z, raw_std = logits().requires_grad_(), torch.linspace(-1, 1, 24).double().reshape(6, 4).requires_grad_()
    for exclude_self in (True, False):
        for mask in (None, torch.tensor([True, True, False, True, True, True])):
            assert gradcheck(lambda z, s, e=exclude_self, m=mask: loss(z, s, e, m), (z, raw_std))
    # A deviation per expert, too.
    assert gradcheck(lambda z, s: load_loss(z, z + noise(), s.exp(), 3), (z, raw_std[0].detach().requires_grad_()))


def test_the_threshold_moves_the_others() -> None:
    noisy = logits().requires_grad_()
    p = selection_probability(logits(), noisy, 1.0, 2)
    (gradient,) = torch.autograd.grad(p[0].sum(), noisy)
    # Row 0 is in order: the third number is the threshold of the first two, the second that of the last two.
    density = torch.exp(-0.5 * torch.tensor([2.0, 1.0, 1.0, 2.0]).double() ** 2) / math.sqrt(2 * math.pi)
    expected = torch.stack([density[0] * 0, -(density[2] + density[3]), -(density[0] + density[1]), density[0] * 0])
    torch.testing.assert_close(gradient[0], expected)


def test_all_experts_chosen_is_a_load_without_gradient() -> None:
    z = logits().requires_grad_()
    p = selection_probability(z, z, 1.0, 4)
    assert not p.requires_grad
    assert (p == 1).all()
    assert load_loss(z, z, 1.0, 4) == 0


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_experts_out_of_reach(top_k: int, exclude_self: bool) -> None:
    z = logits()
    z[:, 2] = -torch.inf
    reachable = [0, 1, 3]
    z.requires_grad_()
    std = torch.full((6, 4), STD, dtype=torch.float64, requires_grad=True)
    p = selection_probability(z, z + std * noise(), std, top_k, exclude_self=exclude_self)
    if top_k < 3 or (top_k == 3 and not exclude_self):
        noisy = (z + std * noise())[:, reachable]
        expected = selection_probability(z[:, reachable], noisy, STD, top_k, exclude_self=exclude_self)
    else:
        expected = torch.ones(6, 3, dtype=torch.float64)
    torch.testing.assert_close(p[:, reachable], expected)
    if p.requires_grad:
        assert (p[:, 2] == 0).all()
        for gradient in torch.autograd.grad(p.square().sum(), (z, std)):
            assert gradient.isfinite().all()


def test_estimates_the_load() -> None:
    # Drawn again and again, the mean of the probabilities is the mean of the choices.
    generator = torch.Generator().manual_seed(0)
    z = logits().repeat(20000, 1)
    noisy = z + 0.7 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    chosen = torch.zeros_like(z).scatter(1, noisy.topk(2, dim=1).indices, 1.0)
    estimate = selection_probability(z, noisy, 0.7, 2)
    torch.testing.assert_close(estimate.mean(0), chosen.mean(0), atol=5e-3, rtol=0)


def test_errors() -> None:
    z = logits()
    with pytest.raises(ValueError, match="top_k must be at most 4"):
        selection_probability(z, z, 1.0, 5)
    with pytest.raises(ValueError, match="noise_std must be greater than 0"):
        load_loss(z, z, 0.0, 2)
    with pytest.raises(ValueError, match="noisy_logits must be"):
        selection_probability(z, z[:3], 1.0, 2)
    with pytest.raises(TypeError, match="clean_logits must be"):
        load_loss(z.long(), z, 1.0, 2)
