"""nn.QuantizedExperts: what nn.Experts becomes for inference with weights in int8."""

import copy

import pytest
import torch

import moe_ext
from moe_ext import nn as moe_nn
from tests.support.tolerance import assert_same_bits


def routing(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(num_tokens, 2), torch.randint(-1, 5, (num_tokens, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "interleaved": True, "activation": "clamped_swiglu", "limit": 1.0, "alpha": 1.5},
        {"transposed": True, "bias": True},
        {"activation": "relu2"},
    ],
)
def test_close_to_the_experts(options: dict[str, object], apply_weights: str, dtype: torch.dtype) -> None:
    experts = moe_nn.Experts(96, 64, 5, apply_weights=apply_weights, dtype=dtype, **options)  # type: ignore[arg-type]
    if options.get("bias"):
        torch.nn.init.normal_(experts.b_gate_up)
        torch.nn.init.normal_(experts.b_down)
    quantized = experts.quantize()
    x, (weights, ids) = torch.randn(40, 96, dtype=dtype), routing(40)
    with torch.no_grad():
        expected = experts(x, weights, ids)
    actual = quantized(x, weights, ids)
    assert actual.dtype == dtype
    assert (actual - expected).norm() < 0.02 * expected.norm()
    assert not list(quantized.parameters())


def test_in_a_layer_and_back_from_a_state_dict() -> None:
    layer = moe_nn.MoE(32, 16, 4, 2, bias=True)
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = layer(x)
        other = copy.deepcopy(layer)
        layer.experts = layer.experts.quantize()  # type: ignore[assignment]
        actual = layer(x)
        assert (actual - expected).norm() < 0.02 * expected.norm()
        torch.nn.init.normal_(other.experts.w_down)
        other.experts = other.experts.quantize()  # type: ignore[assignment]
        other.load_state_dict(layer.state_dict())
        assert_same_bits(other(x), actual, "loaded")


def test_casts_leave_scales_alone() -> None:
    experts = moe_nn.Experts(32, 16, 4, bias=True).quantize()
    before = copy.deepcopy(experts.experts)
    experts = experts.to(torch.bfloat16)
    assert experts.b_down is not None
    assert experts.b_down.dtype == torch.bfloat16
    for name, tensor in experts.experts._asdict().items():
        assert_same_bits(tensor, getattr(before, name), name)
    x, (weights, ids) = torch.randn(3, 32, dtype=torch.bfloat16), routing(3)
    assert experts(x, weights, ids).dtype == torch.bfloat16
    assert isinstance(experts.experts, moe_ext.Int8Experts)
    assert experts.to("meta").experts.w_down_scale.is_meta


def test_repr_says_what_it_is() -> None:
    experts = moe_nn.Experts(32, 16, 4, activation="relu2").quantize()
    assert "hidden_size=32, intermediate_size=16, num_experts=4, activation='relu2', bias=False" in repr(experts)
