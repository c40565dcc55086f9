import math

import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import router_z_loss
from tests.losses.worked_example import logits


def test_worked_example() -> None:
    z = logits().requires_grad_()
    loss = router_z_loss(z)
    assert loss.item() == pytest.approx(8.710072, abs=1e-6)
    loss.backward()
    expected = torch.tensor([0.523758, 0.192680, 0.070883, 0.026076], dtype=torch.float64)
    torch.testing.assert_close(z.grad[0], expected, atol=1e-6, rtol=0)


def test_every_token_of_the_worked_example() -> None:
    roots = [router_z_loss(row[None]).sqrt().item() for row in logits()]
    assert roots == pytest.approx([2.440190, 3.440190, 2.381566, 3.277978, 2.493812, 3.440190], abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    # exp(500) is infinite in float32, and bfloat16 logits must not be summed in bfloat16.
    z = torch.full((2, 4), 500.0, dtype=torch.bfloat16)
    loss = router_z_loss(z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((500 + math.log(4)) ** 2, rel=1e-6)


def test_masked_tokens_leave_the_loss() -> None:
    keep = torch.tensor([True, False, True, True, False, True])
    expected = router_z_loss(logits()[keep])
    z = logits()
    z[~keep] = float("nan")
    z.requires_grad_()
    loss = router_z_loss(z, token_mask=keep)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert z.grad.isfinite().all()
    assert (z.grad[~keep] == 0).all()


def test_no_tokens() -> None:
    assert router_z_loss(logits()[:0]).item() == 0
    assert router_z_loss(logits(), token_mask=torch.zeros(6, dtype=torch.bool)).item() == 0


def test_gradcheck() -> None:
    mask = torch.tensor([True, True, False, True, True, True])
    assert gradcheck(router_z_loss, logits().requires_grad_())
    assert gradcheck(lambda z: router_z_loss(z, token_mask=mask), logits().requires_grad_())
