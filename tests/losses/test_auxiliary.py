import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from moe_ext.losses import AuxiliaryLossScale, add_auxiliary_loss


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


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_scale_set_between_forward_and_backward(use_reentrant: bool | None) -> None:
    scale = AuxiliaryLossScale(3.0)
    w = torch.randn(4, requires_grad=True)
    x = torch.randn(4, requires_grad=True)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return add_auxiliary_loss(x * 2, w.sum(), scale)

    for value in (256.0, torch.tensor([0.5])):
        y = layer(x) if use_reentrant is None else checkpoint(layer, x, use_reentrant=use_reentrant)
        scale.set(value)
        w.grad = None
        y.sum().backward()
        assert torch.equal(w.grad, torch.full((4,), float(value)))
    assert repr(scale) == "AuxiliaryLossScale(0.5)"


def test_one_scale_for_many_losses_as_one_graph() -> None:
    scale = AuxiliaryLossScale()
    w = torch.randn(4, requires_grad=True)

    def layers(x: torch.Tensor) -> torch.Tensor:
        return add_auxiliary_loss(add_auxiliary_loss(x, w.sum(), scale), 2 * w.sum(), scale)

    recompiled = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layers, fullgraph=True, backend=recompiled)
    for value in (1.0, 64.0, 0.25):
        scale.set(value)
        w.grad = None
        compiled(torch.randn(4, requires_grad=True)).sum().backward()
        assert torch.equal(w.grad, torch.full((4,), 3 * value))
    assert recompiled.frame_count == 1


def test_tensor_scale_of_another_dtype() -> None:
    w = torch.randn(4, dtype=torch.bfloat16, requires_grad=True)
    add_auxiliary_loss(torch.randn(3, requires_grad=True), w.sum(), torch.tensor(2.0)).sum().backward()
    assert torch.equal(w.grad, torch.full((4,), 2.0, dtype=torch.bfloat16))


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
    with pytest.raises(TypeError, match=r"moe_ext.losses.add_auxiliary_loss: loss must be a torch.Tensor, got float"):
        add_auxiliary_loss(torch.randn(3), 0.5)


def test_scales_that_are_none_are_an_error() -> None:
    x, loss = torch.randn(3), torch.randn(())
    with pytest.raises(ValueError, match="scale must have one element"):
        add_auxiliary_loss(x, loss, torch.ones(2))
    with pytest.raises(TypeError, match="scale must be a number, a tensor or an AuxiliaryLossScale, got str"):
        add_auxiliary_loss(x, loss, "2")
    with pytest.raises(ValueError, match="value must be finite"):
        AuxiliaryLossScale().set(float("inf"))
    with pytest.raises(ValueError, match="value must have one element"):
        AuxiliaryLossScale().set(torch.ones(2))
