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
from tests.support.backends import Backend

IDS = torch.tensor([[0, 1], [1, 2], [-1, 4], [4, 0], [2, NUM_EXPERTS]])
_, W_GATE_UP, W_DOWN = model_weights(requires_grad=False)
LOW = (torch.bfloat16, torch.float16)
# Which arguments of a raw op are data, to be lowered.
DATA = {
    "gather_rows": (0,), "grouped_gemm": (0, 1, 3), "combine": (0,), "fused_experts": (0, 1, 2, 5, 6),
    "soft_mix": (0,),
}  # fmt: skip


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("sample", [s for s in samples() if s.op in (*DATA, "route")], ids=str)
def test_only_data_is_lowered(backend: Backend, sample: Sample, low: torch.dtype) -> None:
    expected = [arg.dtype if isinstance(arg, Tensor) else None for arg in sample.args]
    for position in DATA.get(sample.op, ()):
        expected[position] = low if expected[position] is not None else None
    with Recorder() as recorder, torch.autocast(backend.device, low):
        result = sample.overload(*backend.put(sample.args))
    assert recorder.dtypes_of(sample.op) == expected
    first = result[0] if isinstance(result, tuple) else result
    assert first.dtype == (torch.float32 if sample.op == "route" else low)


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("sample", [s for s in samples() if s.op in (*DATA, "route")], ids=str)
def test_result_is_that_of_casting_by_hand(backend: Backend, sample: Sample, low: torch.dtype) -> None:
    args = backend.put(sample.args)
    by_hand = list(args)
    for position in DATA.get(sample.op, ()):
        by_hand[position] = by_hand[position].to(low) if by_hand[position] is not None else None
    with torch.autocast(backend.device, low):
        result = sample.overload(*args)
    torch.testing.assert_close(result, sample.overload(*by_hand), rtol=0, atol=0)


def test_float64_is_left_alone(backend: Backend) -> None:
    for sample in samples(torch.float64):
        with torch.autocast(backend.device, torch.bfloat16), Recorder() as recorder:
            sample.overload(*backend.put(sample.args))
        assert torch.bfloat16 not in recorder.dtypes_of(sample.op)


def test_disabled_autocast_changes_nothing(backend: Backend) -> None:
    inputs = backend.put((tokens(6), *model_weights()))
    with torch.autocast(backend.device, torch.bfloat16), torch.autocast(backend.device, enabled=False):
        assert fused_model(*inputs).dtype == torch.float32


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("low", LOW, ids=str)
def test_gradients_come_back_in_the_dtypes_of_the_leaves(
    backend: Backend, model: Callable[..., Tensor], low: torch.dtype
) -> None:
    inputs = backend.put((tokens(6), *model_weights()))
    with torch.autocast(backend.device, low):
        output = model(*inputs)
    assert output.dtype == low
    output.float().square().sum().backward()
    assert [tensor.grad.dtype for tensor in inputs] == [torch.float32] * 4


def test_mixed_dtypes_meet_under_autocast_only(backend: Backend) -> None:
    x, (w_router, w_gate_up, w_down) = tokens(6), model_weights()
    inputs = backend.put((x, w_router, w_gate_up.detach().bfloat16(), w_down.detach().half()))
    with torch.autocast(backend.device, torch.bfloat16):
        assert fused_model(*inputs).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"w_gate_up must be torch.float32 like x, got torch.bfloat16"):
        fused_model(*inputs)


def test_low_precision_routing_weights_become_float32(backend: Backend) -> None:
    x, (_, w_gate_up, w_down) = backend.put((tokens(2), model_weights()))
    ids = backend.put(torch.tensor([[0, 1], [1, 2]]))
    for low in LOW:
        weights = backend.put(torch.rand(2, 2).to(low).requires_grad_())
        with Recorder() as recorder:
            output = moe_ext.fused_experts(x.to(low), w_gate_up.to(low), w_down.to(low), weights, ids)
        assert recorder.dtypes_of("fused_experts")[3] == torch.float32
        output.sum().backward()
        assert weights.grad is not None
        assert weights.grad.dtype == low


def fused_loss(x: Tensor, w_gate_up: Tensor, w_down: Tensor, ids: Tensor) -> Tensor:
    return moe_ext.fused_experts(x, w_gate_up, w_down, x.new_ones(ids.shape), ids).float().square().sum()


def stepwise_loss(x: Tensor, w_gate_up: Tensor, w_down: Tensor, ids: Tensor) -> Tensor:
    perm = moe_ext.permute(ids, NUM_EXPERTS)
    rows = moe_ext.grouped_gemm(moe_ext.gather_rows(x, perm), w_gate_up, perm.expert_offsets)
    return moe_ext.combine(rows, x.new_ones(ids.shape), perm).float().square().sum()


@pytest.mark.parametrize("loss", [fused_loss, stepwise_loss])
def test_backward_inside_autocast_is_the_same(backend: Backend, loss: Callable[..., Tensor]) -> None:
    """Dtypes are decided by forward; a float32 graph that runs backward in an autocast region stays float32."""
    x, *others = backend.put((tokens(IDS.shape[0]), W_GATE_UP, W_DOWN, IDS))
    expected = torch.autograd.grad(loss(x, *others), x)
    value = loss(x, *others)
    with torch.autocast(backend.device, torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(value, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [fused_loss, stepwise_loss])
def test_func_grad_under_autocast(backend: Backend, loss: Callable[..., Tensor]) -> None:
    x, *others = backend.put((tokens(IDS.shape[0]), W_GATE_UP, W_DOWN, IDS))
    with torch.autocast(backend.device, torch.bfloat16):
        (expected,) = torch.autograd.grad(loss(x, *others), x)
        with Recorder() as recorder:
            got = torch.func.grad(loss)(x.detach(), *others)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    computed = [args[0].dtype for name, args in recorder.calls if name in DATA]
    assert computed == [torch.bfloat16] * len(computed)
