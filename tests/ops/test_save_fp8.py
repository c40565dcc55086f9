"""fused_experts(save="fp8"): the same output, half the bytes, and the gradients that belong to the rounded values."""

from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.ops.test_saved_bytes import kept_bytes
from tests.support.backends import Backend
from tests.support.cases import CASES, Case, Shape, balanced, sentinels
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_close_to_truth, assert_same_bits
from tests.support.truth import run_on, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kept(tensors: dict[str, Tensor], save: str, activation: str, interleaved: bool) -> Tensor:
    """What the op keeps of the pre-activation."""
    given = [
        tensors.get(name) for name in ("x", "w_gate_up", "w_down", "topk_weights", "topk_ids", "b_gate_up", "b_down")
    ]
    options = (activation, 1.3, 7.0, interleaved, False, "output", save, None, False)
    preact: Tensor = torch.ops.moe_ext.fused_experts(*given, *options)[1]
    return preact


def experts_of(preact: Tensor, activation: str, interleaved: bool) -> Any:
    """The reference, whose derivatives are taken at a given pre-activation instead of its own."""

    def run(
        x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_weights: Tensor, topk_ids: Tensor, **bias: Tensor
    ) -> Tensor:
        permutation = offsets, _, _ = reference.permute(topk_ids, w_down.shape[0])
        rows = reference.gather_rows(x, permutation)
        z = reference.grouped_gemm(rows, w_gate_up, offsets, bias=bias.get("b_gate_up"))

        def after(z: Tensor) -> Tensor:
            act = reference.activate(z, activation, alpha=1.3, interleaved=interleaved)
            out = reference.grouped_gemm(act, w_down, offsets, bias=bias.get("b_down"))
            return reference.combine(out, topk_weights, permutation)

        y = after(z + (preact.to(z) - z).detach())
        return y + (after(z) - y).detach()

    return run


@pytest.mark.parametrize(
    ("activation", "interleaved"),
    [
        ("swiglu", False),
        ("swiglu", True),
        ("geglu", False),
        ("clamped_swiglu", True),
        ("gelu", False),
        ("silu", False),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(64, 96, 64), (30, 45, 37)], ids=["whole_blocks", "odd"])
def test_gradients(
    backend: Backend, size: tuple[int, int, int], dtype: torch.dtype, activation: str, interleaved: bool
) -> None:
    num_tokens, hidden_size, intermediate_size = size
    problem = Case("", Shape(num_tokens, hidden_size, intermediate_size, 5, 2), sentinels)
    tensors = make_inputs(problem, dtype, activation=activation, interleaved=interleaved, bias=True).tensors()
    gated = activation in reference.GATED_ACTIVATIONS
    width = tensors["w_gate_up"].shape[1]
    stored = kept(backend.put(tensors), "fp8", activation, interleaved).cpu()
    assert stored.shape[1] == reference.mxfp8_row_bytes(width, gated=gated)
    decoded = reference.mxfp8_decode(stored, width, gated=gated, interleaved=interleaved)
    options = {"activation": activation, "interleaved": interleaved, "alpha": 1.3, "save": "fp8"}
    actual = run_on(backend, moe_ext.fused_experts, tensors, **options)

    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    at_decoded = experts_of(decoded, activation, interleaved)
    truth = run_with_gradients(at_decoded, wide, upstream_dtype=dtype)
    # Decoded values have four digits, so float32 holds many of their products exactly. How much the plain computation
    # errs is seen at values with all their digits.
    at_exact = experts_of(kept(tensors, "preact", activation, interleaved), activation, interleaved)
    plain = run_with_gradients(at_exact, tensors)
    plain_truth = run_with_gradients(at_exact, wide, upstream_dtype=dtype)
    for name, value in actual.items():
        yardstick = truth[name] + (plain[name].double() - plain_truth[name])
        assert_close_to_truth(value, truth[name], yardstick.to(value.dtype), name, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    """What is kept is the pre-activation, rounded; y has the bits that it always has; rows of no expert are zero."""
    tensors = backend.put(make_inputs(case, dtype, bias=True).tensors())
    width = tensors["w_gate_up"].shape[1]
    exact = kept(tensors, "preact", "swiglu", False).cpu()
    stored = kept(tensors, "fp8", "swiglu", False).cpu()
    decoded = reference.mxfp8_decode(stored, width, gated=True)
    # Three bits of mantissa; saturation of what is above 448 / 512 of its block's power of two; the smallest numbers.
    scale = exact.float().abs().amax() if exact.numel() else 0.0
    assert ((decoded - exact.float()).abs() <= exact.float().abs() / 8 + 2**-16 * scale).all()
    used = int(reference.permute(tensors["topk_ids"].cpu(), case.shape.num_experts)[0][-1])
    assert not decoded[used:].any()

    y = moe_ext.fused_experts(**tensors, save="fp8")
    assert_same_bits(y.cpu(), moe_ext.fused_experts(**tensors, save="preact").cpu(), "y")


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_kept_bytes(backend: Backend, activation: str) -> None:
    """b H + parts K I (1 + 1 / 32) + 8 K a token, and the offsets."""
    problem = Case("", Shape(48, 64, 96, 8, 2), balanced)
    tensors = backend.put(make_inputs(problem, torch.bfloat16, activation=activation).tensors())
    leaves = {name: t.requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}
    weights = [leaves["w_gate_up"], leaves["w_down"]]
    parts = 2 if activation == "swiglu" else 1
    wanted = 48 * (2 * 64 + parts * 2 * 96 * 33 // 32 + 8 * 2) + 4 * 9
    assert kept_bytes(weights, lambda: moe_ext.fused_experts(**leaves, activation=activation, save="fp8")) == wanted


def test_float64_is_refused() -> None:
    tensors = make_inputs(CASES[0], torch.float64).tensors()
    with pytest.raises(TypeError, match=r'save="fp8" needs x in float32, bfloat16 or float16, got torch\.float64'):
        moe_ext.fused_experts(**tensors, save="fp8")


def test_compiles() -> None:
    tensors = make_inputs(CASES[0], torch.bfloat16).tensors()
    x = tensors["x"].requires_grad_()
    compiled = torch.compile(lambda **given: moe_ext.fused_experts(**given, save="fp8"), fullgraph=True)
    expected = torch.autograd.grad(moe_ext.fused_experts(**tensors, save="fp8").sum(), x)[0]
    assert_same_bits(torch.autograd.grad(compiled(**tensors).sum(), x)[0], expected, "grad_x")
