import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moe_ext.losses import add_auxiliary_loss


def test_value_is_unchanged_and_both_gradients_arrive() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    w = torch.randn(4, requires_grad=True)
    y = add_auxiliary_loss(x, w.square().sum())
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(w.grad, 2 * w.detach())


def test_same_as_adding_the_loss() -> None:
    w = torch.randn(4, requires_grad=True)
    x = torch.randn(3, 4)
    (explicit,) = torch.autograd.grad((x * w).square().sum() + 0.1 * w.exp().sum(), w)
    (carried,) = torch.autograd.grad(add_auxiliary_loss(x * w, 0.1 * w.exp().sum()).square().sum(), w)
    torch.testing.assert_close(carried, explicit)


def test_independent_of_what_follows() -> None:
    w = torch.randn(4, requires_grad=True)
    (0 * add_auxiliary_loss(torch.randn(3, requires_grad=True), w.sum())).sum().backward()
    assert torch.equal(w.grad, torch.ones(4))


def test_scale() -> None:
    w = torch.randn(4, requires_grad=True)
    add_auxiliary_loss(torch.randn(3, requires_grad=True), w.sum(), 128.0).sum().backward()
    assert torch.equal(w.grad, torch.full((4,), 128.0))


def test_loss_that_needs_no_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    add_auxiliary_loss(x, torch.tensor(1.0)).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_does_not_add_it_twice(use_reentrant: bool) -> None:
    w = torch.randn(4, requires_grad=True)
    x = torch.randn(4, requires_grad=True)
    y = checkpoint(lambda x: add_auxiliary_loss(x * 2, w.sum()), x, use_reentrant=use_reentrant)
    y.sum().backward()
    assert torch.equal(w.grad, torch.ones(4))


def test_compiles_as_one_graph() -> None:
    w = torch.randn(4, requires_grad=True)
    x = torch.randn(4, requires_grad=True)
    compiled = torch.compile(lambda x, w: add_auxiliary_loss(x * 3, w.sum(), 2.0), fullgraph=True, backend="aot_eager")
    compiled(x, w).sum().backward()
    assert torch.equal(w.grad, torch.full((4,), 2.0))
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_losses_of_several_elements_are_an_error() -> None:
    with pytest.raises(ValueError, match="one element"):
        add_auxiliary_loss(torch.randn(3), torch.randn(2))
