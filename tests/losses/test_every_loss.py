"""What holds for all losses: gradients, padding, names of experts, precision, and one graph."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.losses.losses import GRADIENT_IS_NOT_OF_VALUE, LOSSES, OF_CLUSTERS
from tests.losses.worked_example import logits, topk_ids

KEEP = torch.tensor([True, True, False, True, True, True])


def value_and_gradient(name: str, z: Tensor, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    loss = LOSSES[name](z, ids, mask)
    assert loss.shape == ()
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - GRADIENT_IS_NOT_OF_VALUE))
def test_gradcheck(name: str) -> None:
    z = (logits() + 0.01 * torch.arange(24).reshape(6, 4).double().cos()).requires_grad_()
    assert gradcheck(lambda z: LOSSES[name](z, topk_ids(), None), z)
    assert gradcheck(lambda z: LOSSES[name](z, topk_ids(), KEEP), z)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_tokens_leave_the_loss(name: str) -> None:
    expected, expected_gradient = value_and_gradient(name, logits()[KEEP], topk_ids()[KEEP])
    z = logits()
    z[~KEEP] = float("nan")
    loss, gradient = value_and_gradient(name, z, topk_ids(), KEEP)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[KEEP], expected_gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_no_token_is_a_loss_of_zero(name: str) -> None:
    loss, gradient = value_and_gradient(name, logits(), topk_ids(), torch.zeros(6, dtype=torch.bool))
    assert loss == 0
    assert (gradient == 0).all()
    assert LOSSES[name](logits()[:0], topk_ids()[:0], None) == 0


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - OF_CLUSTERS))
def test_names_of_experts_do_not_matter(name: str) -> None:
    z = logits() + 0.01 * torch.arange(24).reshape(6, 4).double().cos()
    ids = topk_ids()
    new_to_old = torch.tensor([2, 0, 3, 1])
    old_to_new = new_to_old.argsort().int()
    loss, gradient = value_and_gradient(name, z, ids)
    renamed_loss, renamed_gradient = value_and_gradient(name, z[:, new_to_old], old_to_new[ids.long()])
    torch.testing.assert_close(renamed_loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(renamed_gradient, gradient[:, new_to_old], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_as_one_graph(name: str) -> None:
    expected, expected_gradient = value_and_gradient(name, logits(), topk_ids(), KEEP)
    z = logits().requires_grad_()
    torch.compiler.reset()
    loss = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")(z, topk_ids(), KEEP)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected_gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_whatever_surrounds_it(name: str) -> None:
    expected, _ = value_and_gradient(name, logits(torch.float32), topk_ids(), KEEP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = value_and_gradient(name, logits(torch.float32), topk_ids(), KEEP)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    # The logits are exact in bfloat16, but what the helpers make of them for these is not.
    if name not in ("importance", "load", "vmoe_load", "load_balancing_unbiased", "accumulated", "consistency"):
        narrow, gradient = value_and_gradient(name, logits(torch.bfloat16), topk_ids(), KEEP)
        assert narrow.dtype == torch.float32
        assert gradient.dtype == torch.bfloat16
