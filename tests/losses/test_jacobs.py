from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_ext.losses import competitive_loss, cooperative_loss, mixture_likelihood_loss

ALL = (cooperative_loss, competitive_loss, mixture_likelihood_loss)


def case(*outputs: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two experts with the gate (0.7, 0.3), the target 2."""
    o = torch.tensor(outputs, dtype=torch.float64).reshape(1, 2, 1).requires_grad_()
    z = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log().requires_grad_()
    return o, z, torch.tensor([[2.0]], dtype=torch.float64)


def gradients(loss: Tensor, *inputs: Tensor) -> list[list[float]]:
    return [g.flatten().tolist() for g in torch.autograd.grad(loss, inputs)]


def test_worked_examples() -> None:
    o, z, d = case(1, 3)
    cooperative, competitive = cooperative_loss(o, z, d), competitive_loss(o, z, d)
    assert cooperative.item() == pytest.approx(0.16, abs=1e-6)
    assert competitive.item() == pytest.approx(1, abs=1e-6)
    assert mixture_likelihood_loss(o, z, d).item() == pytest.approx(0.5, abs=1e-6)
    assert gradients(cooperative, o)[0] == pytest.approx([-0.56, -0.24], abs=1e-6)
    assert gradients(competitive, o)[0] == pytest.approx([-1.4, 0.6], abs=1e-6)


def test_gradient_of_the_gate() -> None:
    o, z, d = case(1, 2.5)
    competitive, likelihood = competitive_loss(o, z, d), mixture_likelihood_loss(o, z, d)
    assert competitive.item() == pytest.approx(0.775, abs=1e-6)
    assert likelihood.item() == pytest.approx(0.372049, abs=1e-6)
    # A below-average error raises the gate.
    assert gradients(competitive, z)[0] == pytest.approx([0.1575, -0.1575], abs=1e-6)
    of_outputs, of_gate = gradients(likelihood, o, z)
    assert of_gate == pytest.approx([0.084073, -0.084073], abs=1e-6)
    assert of_outputs == pytest.approx([-0.615927, 0.384073 * 0.5], abs=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_gradcheck(loss: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    o, z, d = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3, 2), (5, 3), (5, 2))
    )
    mask = torch.tensor([True, True, False, True, True])
    assert gradcheck(loss, (o, z, d))
    assert gradcheck(lambda *inputs: loss(*inputs, token_mask=mask), (o, z, d))


@pytest.mark.parametrize("loss", ALL)
def test_all_agree_when_all_experts_do(loss: Callable[..., Tensor]) -> None:
    o, z, d = torch.ones(4, 3, 2), torch.randn(4, 3), torch.full((4, 2), 3.0)
    # || d - o ||^2 = 8, and half of it is the negative log likelihood.
    assert loss(o, z, d).item() == pytest.approx(4 if loss is mixture_likelihood_loss else 8, rel=1e-6)


def test_far_targets_do_not_underflow() -> None:
    o, z, d = case(1e3, -1e3)
    loss = mixture_likelihood_loss(o, z, d)
    assert loss.item() == pytest.approx(0.5 * 998**2 - torch.tensor(0.7).log().item())


def test_errors() -> None:
    o, z, d = case(1, 2)
    with pytest.raises(ValueError, match="outputs must be"):
        cooperative_loss(o[0], z, d)
    with pytest.raises(ValueError, match="router_logits must be"):
        competitive_loss(o, z[:, :1], d)
    with pytest.raises(ValueError, match="targets must be"):
        mixture_likelihood_loss(o, z, d[0])
