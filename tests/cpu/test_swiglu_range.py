"""swiglu over the whole range of bfloat16, forward and backward: instruction sets may have arithmetic of their own."""

import pytest
import torch

import moe_ext
from moe_ext import _C
from tests.support.backends import pinned

SIZE = 64
# A rounding of the result, and one of the pre-activation that backward starts from.
TWO_ROUNDINGS = 2.0**-7


def _every_finite_value() -> torch.Tensor:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    # What tiles take for zero is left out.
    return values[values.isfinite() & (values.abs() >= 2.0**-126)]


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
def test_each_value(isa):
    values = _every_finite_value()
    gate = torch.nn.functional.pad(values, (0, -len(values) % SIZE)).view(-1, SIZE)
    # x is (gate, 1): the weights hand each of its halves to gate and up as it is, and the act to y.
    x = torch.cat((gate, torch.ones_like(gate)), dim=1)
    eye = torch.eye(2 * SIZE, dtype=torch.bfloat16)[None]
    w_down = torch.cat((eye[:, :SIZE, :SIZE], torch.zeros(1, SIZE, SIZE, dtype=torch.bfloat16)), dim=1)
    weights, ids = torch.ones(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int32)
    upstream = torch.cat((torch.ones_like(gate), torch.zeros_like(gate)), dim=1)
    with pinned(isa):
        leaf = x.clone().requires_grad_()
        y = moe_ext.fused_experts(leaf, eye, w_down, weights, ids)
        (grad,) = torch.autograd.grad(y, leaf, upstream)

    exact = gate.double().requires_grad_()
    silu = torch.nn.functional.silu(exact)
    (slope,) = torch.autograd.grad(silu.sum(), exact)
    # Below e^-87 a result may be rounded to zero.
    least = 2.0**-110
    torch.testing.assert_close(y[:, :SIZE].double(), silu.detach(), rtol=TWO_ROUNDINGS, atol=least)
    # Where two parts of the slope cancel, near its zero at -1.28, rounding of either stays: 2^-20.
    torch.testing.assert_close(grad[:, :SIZE].double(), slope, rtol=TWO_ROUNDINGS, atol=2.0**-20)
    torch.testing.assert_close(grad[:, SIZE:].double(), silu.detach(), rtol=TWO_ROUNDINGS, atol=least)
