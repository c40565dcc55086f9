import math

import pytest
import torch

from moe_ext.reference import ACTIVATIONS, GATED_ACTIVATIONS, UNGATED_ACTIVATIONS, activate
from tests.reference import brute_force


def test_names() -> None:
    assert set(GATED_ACTIVATIONS) == set(brute_force.GATED)
    assert set(UNGATED_ACTIVATIONS) == set(brute_force.UNGATED)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_brute_force(activation: str, interleaved: bool) -> None:
    preact = torch.randn(9, 14, dtype=torch.float64) * 4  # beyond the clamp, too
    actual = activate(preact, activation, alpha=1.3, limit=2.5, interleaved=interleaved)
    expected = [
        brute_force.activate(row, activation, alpha=1.3, limit=2.5, interleaved=interleaved) for row in preact.tolist()
    ]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_clamped_swiglu_by_hand() -> None:
    cut = activate(torch.tensor([[9.0, -8.0]], dtype=torch.float64), "clamped_swiglu")  # gate to 7, up to -7
    assert cut.item() == pytest.approx((1 - 7) * 7 / (1 + math.exp(-1.702 * 7)), rel=1e-12)
    kept = activate(torch.tensor([[-9.0, 0.0]], dtype=torch.float64), "clamped_swiglu")  # no lower bound for the gate
    assert kept.item() == pytest.approx(-9 / (1 + math.exp(1.702 * 9)), rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str) -> None:
    preact = (torch.randn(5, 6, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: activate(z, activation, limit=1.5), preact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rounds_once(activation: str, dtype: torch.dtype) -> None:
    preact = torch.randn(20, 32).to(dtype)
    actual, exact = activate(preact, activation), activate(preact.double(), activation)
    assert actual.dtype == dtype
    half_step = exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6
    assert ((actual.double() - exact).abs() <= half_step).all()


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="activation"):
        activate(torch.zeros(1, 2), "tanh")
