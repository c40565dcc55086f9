"""quantize_experts: the values and scales, any layout, and what cannot be quantised."""

from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.cases import Case, Shape, balanced
from tests.support.inputs import make_inputs, strided_variants
from tests.support.tolerance import assert_same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantised_values(cpu_isa: str, dtype: torch.dtype) -> None:
    weight = make_inputs(Case("weights", Shape(1, 50, 30, 3, 1), balanced), dtype).w_gate_up
    down = torch.randn(3, 50, 30).to(dtype)
    experts = moe_ext.quantize_experts(weight, down)
    for values, scale, exact in ((experts[0], experts[1], weight), (experts[2], experts[3], down)):
        assert values.dtype == torch.int8
        assert scale.dtype == torch.float32
        assert values.is_contiguous()
        assert (values.abs().amax(dim=2) == 127).all()
        error = (values.double() * scale[..., None] - exact.double()).abs()
        assert (error <= scale[..., None] * (0.5 + 1e-4)).all()
        expected = reference.quantize_rows(exact)
        assert_same_bits(values, expected[0], "values")
        assert_same_bits(scale, expected[1], "scale")
    assert experts.nbytes == 3 * 60 * 50 + 3 * 50 * 30 + 4 * (3 * 60 + 3 * 50)


def test_quantising_any_layout() -> None:
    inputs = make_inputs(Case("layout", Shape(1, 20, 12, 3, 1), balanced))
    expected = moe_ext.quantize_experts(inputs.w_gate_up, inputs.w_down)
    for name in ("w_gate_up", "w_down"):
        weights = {"w_gate_up": inputs.w_gate_up, "w_down": inputs.w_down}
        for variant, weight in strided_variants(weights[name]):
            experts = moe_ext.quantize_experts(**weights | {name: weight})
            for actual, wanted in zip(experts, expected, strict=True):
                assert_same_bits(actual, wanted, variant)
    turned = moe_ext.quantize_experts(inputs.w_gate_up.mT, inputs.w_down.mT, transposed=True)
    for actual, wanted in zip(turned, expected, strict=True):
        assert_same_bits(actual, wanted, "transposed")
        assert actual.is_contiguous()


def test_channels_of_zeros_and_ties() -> None:
    weight = torch.tensor([[[0.0, 0, 0, 0], [127, 0.5, 1.5, -2.5], [1e-40, 0, 0, 0], [-254, 1, 3, 5]]])
    values, scale, *_ = moe_ext.quantize_experts(weight, torch.ones(1, 4, 4))
    assert scale.tolist() == [[0.0, 1.0, 0.0, 2.0]]
    assert values.tolist() == [[[0, 0, 0, 0], [127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 2, 2]]]


W_GATE_UP, W_DOWN = torch.randn(3, 8, 6), torch.randn(3, 6, 4)


def with_value(weight: Tensor, expert: int, value: float) -> Tensor:
    changed = weight.clone()
    changed[expert, 1, 1] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"w_down": W_DOWN.double()}, TypeError, r"w_down must be float32 or bfloat16 or float16, got torch.float64"),
        ({"w_down": None}, TypeError, r"w_down must be a torch.Tensor, got NoneType"),
        ({"w_gate_up": W_GATE_UP.int()}, TypeError, r"w_gate_up must be float32 or .*, got torch.int32"),
        ({"w_gate_up": W_GATE_UP[0]}, ValueError, r"w_gate_up must be \[num_experts, out_features, in_features\]"),
        ({"w_gate_up": W_GATE_UP[:, :7]}, ValueError, r"w_gate_up must have intermediate_size = 4 .* got 7"),
        ({"w_gate_up": W_GATE_UP[:2]}, ValueError, r"w_gate_up must be .* = \(3, 8, 6\), got shape \(2, 8, 6\)"),
        ({"w_down": W_DOWN.to("meta")}, ValueError, r"w_down must be on cpu like w_gate_up, got meta"),
        ({"w_gate_up": W_GATE_UP[:0], "w_down": W_DOWN[:0]}, ValueError, r"at least one expert"),
        ({"transposed": 1}, TypeError, r"transposed must be a bool, got int"),
        ({"w_down": with_value(W_DOWN, 2, torch.nan)}, ValueError, r"w_down must be finite, but that of expert 2 is"),
        ({"w_gate_up": with_value(W_GATE_UP, 0, -torch.inf)}, ValueError, r"w_gate_up must be finite.* expert 0 is"),
    ],
)
def test_what_cannot_be_quantised(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"moe_ext.quantize_experts: .*{message}"):
        moe_ext.quantize_experts(**{"w_gate_up": W_GATE_UP, "w_down": W_DOWN} | changes)
