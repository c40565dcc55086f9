import pytest
import torch
from torch import Tensor

from moe_ext import route, route_with_statistics
from moe_ext.losses import load_balancing_loss, losses_from_statistics, router_z_loss
from tests.losses.worked_example import logits


def test_worked_example() -> None:
    losses = losses_from_statistics(route_with_statistics(logits(), 2))
    assert losses.load_balancing.item() == pytest.approx(1.247661, abs=1e-6)
    assert losses.router_z.item() == pytest.approx(8.710072, abs=1e-6)
    per_token = losses_from_statistics(route_with_statistics(logits(), 2), convention="per_token")
    assert per_token.load_balancing.item() == pytest.approx(2.495322, abs=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("nobody", [False, True])
def test_same_value_and_gradient_as_from_the_logits(score: str, nobody: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    if nobody:
        z[::7] = -torch.inf
    z.requires_grad_()
    routing = route_with_statistics(z, 3, score=score, nonfinite="sanitize")
    losses = losses_from_statistics(routing)
    counted = routing.topk_ids[:, 0] >= 0
    balance = load_balancing_loss(z, routing.topk_ids, score=score)
    router_z = router_z_loss(z, token_mask=counted)
    for got, want in ((losses.load_balancing, balance), (losses.router_z, router_z)):
        torch.testing.assert_close(got, want)
        (got_gradient,) = torch.autograd.grad(got, z, retain_graph=True)
        (want_gradient,) = torch.autograd.grad(want, z, retain_graph=True)
        torch.testing.assert_close(got_gradient, want_gradient)


def test_no_tensor_of_tokens_times_experts_is_kept_but_the_logits() -> None:
    z = torch.randn(64, 32, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sum(losses_from_statistics(route_with_statistics(z, 4))).backward()
    large = [t for t in kept if t.numel() >= z.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == z.data_ptr()

    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (load_balancing_loss(z, route(z, 4).topk_ids) + router_z_loss(z)).backward()
    assert len([t for t in kept if t.numel() >= z.numel()]) > 2, "what it is compared with"


def test_nobody_routed() -> None:
    z = torch.full((3, 4), -torch.inf, requires_grad=True)
    losses = losses_from_statistics(route_with_statistics(z, 2, nonfinite="sanitize"))
    assert losses == (0, 0)
    assert (torch.autograd.grad(losses.load_balancing + losses.router_z, z)[0] == 0).all()


def test_compiles_as_one_graph() -> None:
    def loss(z: Tensor) -> Tensor:
        return sum(losses_from_statistics(route_with_statistics(z, 2)))

    z = logits().requires_grad_()
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(z), z)
    torch.testing.assert_close(got, torch.autograd.grad(loss(z), z)[0])


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"what moe_ext\.route_with_statistics returns, got Routing"):
        losses_from_statistics(route(logits(), 2))
    with pytest.raises(ValueError, match="convention must be"):
        losses_from_statistics(route_with_statistics(logits(), 2), convention="gshard")
