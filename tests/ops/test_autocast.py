"""Autocast lowers the data and never the routing, in eager mode, in raw ops and inside torch.func."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.ops.recorder import Recorder
from tests.ops.samples import (
    MODELS,
    NUM_EXPERTS,
    Sample,
    fused_model,
    model_weights,
    samples,
    tokens,
)

IDS = torch.tensor([[0, 1], [1, 2], [-1, 4], [4, 0], [2, NUM_EXPERTS]])
_, W_GATE_UP, W_DOWN = model_weights(requires_grad=False)
LOW = (torch.bfloat16, torch.float16)
# Which arguments of a raw op are data, to be lowered.
DATA = {"gather_rows": (0,), "grouped_gemm": (0, 1, 3), "combine": (0,), "fused_experts": (0, 1, 2, 5, 6)}


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("sample", [s for s in samples() if s.op in (*DATA, "route")], ids=str)
def test_only_data_is_lowered(sample: Sample, low: torch.dtype) -> None:
    expected = [arg.dtype if isinstance(arg, Tensor) else None for arg in sample.args]
    for position in DATA.get(sample.op, ()):
        expected[position] = low if expected[position] is not None else None
    with Recorder() as recorder, torch.autocast("cpu", low):
        result = sample.overload(*sample.args)
    assert recorder.dtypes_of(sample.op) == expected
    first = result[0] if isinstance(result, tuple) else result
    assert first.dtype == (torch.float32 if sample.op == "route" else low)


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("sample", [s for s in samples() if s.op in (*DATA, "route")], ids=str)
def test_result_is_that_of_casting_by_hand(sample: Sample, low: torch.dtype) -> None:
    by_hand = list(sample.args)
    for position in DATA.get(sample.op, ()):
        by_hand[position] = by_hand[position].to(low) if by_hand[position] is not None else None
    with torch.autocast("cpu", low):
        result = sample.overload(*sample.args)
    torch.testing.assert_close(result, sample.overload(*by_hand), rtol=0, atol=0)


def test_float64_is_left_alone() -> None:
    for sample in samples(torch.float64):
        with torch.autocast("cpu", torch.bfloat16), Recorder() as recorder:
            sample.overload(*sample.args)
        assert torch.bfloat16 not in recorder.dtypes_of(sample.op)


def test_disabled_autocast_changes_nothing() -> None:
    inputs = (tokens(6), *model_weights())
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert fused_model(*inputs).dtype == torch.float32


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("low", LOW, ids=str)
def test_gradients_come_back_in_the_dtypes_of_the_leaves(model: Callable[..., Tensor], low: torch.dtype) -> None:
    inputs = (tokens(6), *model_weights())
    with torch.autocast("cpu", low):
        output = model(*inputs)
    assert output.dtype == low
    output.float().square().sum().backward()
    assert [tensor.grad.dtype for tensor in inputs] == [torch.float32] * 4


def test_mixed_dtypes_meet_under_autocast_only() -> None:
    x, (w_router, w_gate_up, w_down) = tokens(6), model_weights()
    inputs = (x, w_router, w_gate_up.detach().bfloat16(), w_down.detach().half())
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_model(*inputs).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"w_gate_up must be torch.float32 like x, got torch.bfloat16"):
        fused_model(*inputs)


def test_low_precision_routing_weights_become_float32() -> None:
    ids = torch.tensor([[0, 1], [1, 2]])
    for low in LOW:
        weights = torch.rand(2, 2).to(low).requires_grad_()
        _, w_gate_up, w_down = model_weights()
        with Recorder() as recorder:
            output = moe_ext.fused_experts(tokens(2).to(low), w_gate_up.to(low), w_down.to(low), weights, ids)
        assert recorder.dtypes_of("fused_experts")[3] == torch.float32
        output.sum().backward()
        assert weights.grad is not None
        assert weights.grad.dtype == low


def fused_loss(x: Tensor) -> Tensor:
    return moe_ext.fused_experts(x, W_GATE_UP, W_DOWN, torch.ones(IDS.shape), IDS).float().square().sum()


def stepwise_loss(x: Tensor) -> Tensor:
    perm = moe_ext.permute(IDS, NUM_EXPERTS)
    rows = moe_ext.grouped_gemm(moe_ext.gather_rows(x, perm), W_GATE_UP, perm.expert_offsets)
    return moe_ext.combine(rows, torch.ones(IDS.shape), perm).float().square().sum()


@pytest.mark.parametrize("loss", [fused_loss, stepwise_loss])
def test_backward_inside_autocast_is_the_same(loss: Callable[[Tensor], Tensor]) -> None:
    """Dtypes are decided by forward; a float32 graph that runs backward in an autocast region stays float32."""
    x = tokens(IDS.shape[0])
    expected = torch.autograd.grad(loss(x), x)
    value = loss(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(value, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [fused_loss, stepwise_loss])
def test_func_grad_under_autocast(loss: Callable[[Tensor], Tensor]) -> None:
    x = tokens(IDS.shape[0])
    with torch.autocast("cpu", torch.bfloat16):
        (expected,) = torch.autograd.grad(loss(x), x)
        with Recorder() as recorder:
            got = torch.func.grad(loss)(x.detach())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    computed = [args[0].dtype for name, args in recorder.calls if name in DATA]
    assert computed == [torch.bfloat16] * len(computed)
