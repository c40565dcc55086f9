import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from moe_ext.losses import consistency_loss
from tests.losses.worked_example import logits

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
Q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


def test_worked_example() -> None:
    assert consistency_loss(P, Q).item() == pytest.approx(0.088578, abs=1e-6)
    # Logits, so that a constant does not matter.
    assert consistency_loss(P + 5, Q - 300).item() == pytest.approx(0.088578, abs=1e-6)
    assert consistency_loss(torch.cat((P, P)), torch.cat((Q, Q))).item() == pytest.approx(2 * 0.088578, abs=2e-6)


def test_mean_of_both_divergences() -> None:
    a, b = logits().log_softmax(-1), logits().flip(0).log_softmax(-1)
    both = F.kl_div(a, b, log_target=True, reduction="sum") + F.kl_div(b, a, log_target=True, reduction="sum")
    torch.testing.assert_close(consistency_loss(a, b), both / 2)
    torch.testing.assert_close(consistency_loss(b, a), both / 2)
    torch.testing.assert_close(consistency_loss(a, b, reduction="mean"), both / 12)


def test_equal_passes_cost_nothing() -> None:
    z = logits().requires_grad_()
    loss = consistency_loss(z, z.detach().clone())
    assert loss == 0
    assert (torch.autograd.grad(loss, z)[0] == 0).all()


def test_both_sides_get_a_gradient() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    a, b = logits().reshape(2, 3, 4).requires_grad_(), logits().flip(0).reshape(2, 3, 4).requires_grad_()
    assert gradcheck(lambda a, b: consistency_loss(a, b, token_mask=mask, reduction="mean"), (a, b))


def test_masked_vocabulary() -> None:
    masked = torch.full((1, 1), -torch.inf, dtype=torch.float64)
    a, b = torch.cat((P, masked), 1).requires_grad_(), torch.cat((Q, masked), 1).requires_grad_()
    loss = consistency_loss(a, b)
    assert loss.item() == pytest.approx(0.088578, abs=1e-6)
    for gradient in torch.autograd.grad(loss, (a, b)):
        assert gradient.isfinite().all()
    # Probabilities that underflow are no reason for NaN either.
    far = torch.tensor([[0.0, 1000.0]], requires_grad=True)
    assert consistency_loss(far, -far).item() == pytest.approx(1000)


def test_errors() -> None:
    with pytest.raises(ValueError, match="other_logits must be"):
        consistency_loss(P, Q[:, :2])
    with pytest.raises(ValueError, match="token_mask must be"):
        consistency_loss(P, Q, token_mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="reduction must be"):
        consistency_loss(P, Q, reduction="none")
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor"):
        consistency_loss([0.5], Q)
