"""Dropout within experts: what is dropped, what is left, and that a recomputed forward drops the same."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_ext.nn import Experts, MoE
from moe_ext.nn.hidden_dropout import experts_with_dropout

T, H, INTERMEDIATE, E, K = 20, 12, 16, 5, 2
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"bias": True, "interleaved": True},
    {"transposed": True, "apply_weights": "input"},
    {"activation": "relu2", "bias": True},
    {"activation": "clamped_swiglu", "apply_weights": "input", "bias": True},
]


def routing() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)]).int()
    ids[3, 1] = -1
    return torch.rand(T, K, generator=generator), ids


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_rate_of_zero_is_no_dropout(options: dict[str, Any]) -> None:
    experts = Experts(H, INTERMEDIATE, E, **options).double()
    x = torch.randn(T, H, dtype=torch.float64)
    weights, ids = routing()
    expected = experts(x, weights.double(), ids)
    torch.testing.assert_close(experts_with_dropout(experts, x, weights.double(), ids, 0.0), expected)


def test_hidden_values_vanish_at_the_rate_and_the_rest_grow() -> None:
    """One expert that copies its hidden values to the output shows its mask."""
    experts = Experts(H, H, 1, activation="relu", dropout=0.4)
    with torch.no_grad():
        experts.w_gate_up.copy_(torch.eye(H)[None])
        experts.w_down.copy_(torch.eye(H)[None])
    x = torch.rand(4000, H) + 0.5
    y = experts(x, torch.ones(4000, 1), torch.zeros(4000, 1, dtype=torch.int32))
    dropped = y == 0
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.01)
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.6)
    assert (dropped.float().mean(0) - 0.4).abs().max() < 0.035


def test_only_while_training() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, expert_dropout=0.5)
    x = torch.randn(T, H)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_checkpointed_forward_drops_the_same_again() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, expert_dropout=0.5)
    x = torch.randn(T, H, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(run(x).square().sum(), [x, *layer.parameters()]))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_one_graph() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, expert_dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert compiled(torch.randn(T, H)).isfinite().all()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout must be in"):
        Experts(H, INTERMEDIATE, E, dropout=rate)
