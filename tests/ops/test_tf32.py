"""float32 data on tensor cores, once PyTorch's own switch allows it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.cases import Case, Shape, balanced, sentinels
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth, run_on, run_with_gradients


@pytest.fixture
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def short(tensor: Tensor) -> Tensor:
    """Values that TF32 holds exactly."""
    return tensor.bfloat16().float()


@pytest.mark.usefixtures("_tf32")
@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
def test_products_of_short_values_are_as_good_as_float32(backend: Backend, transposed: bool) -> None:
    """Rounding the operands then changes nothing, and sums are float32 all the same."""
    offsets = torch.tensor([0, 3, 3, 90, 100], dtype=torch.int32)
    weight = short(torch.randn(4, 40, 72) / 72**0.5)
    tensors = {
        "rows": short(torch.randn(104, 72)),
        "weight": weight.mT.contiguous() if transposed else weight,
        "expert_offsets": offsets,
    }
    check_against_truth(
        lambda **given: moe_ext.grouped_gemm(**given, transposed=transposed),
        lambda **given: reference.grouped_gemm(**given, transposed=transposed),
        tensors, backend=backend, gradients_of=(),
    )  # fmt: skip


@pytest.mark.usefixtures("_tf32")
@pytest.mark.parametrize("routing", [balanced, sentinels])
def test_fused_experts(backend: Backend, routing: object) -> None:
    """TF32 has the digits of float16: output and gradients are as close to the truth as those of float16 data."""
    inputs = make_inputs(Case("", Shape(60, 64, 48, 4, 2), routing), bias=True).tensors()  # type: ignore[arg-type]
    actual = run_on(backend, moe_ext.fused_experts, inputs)
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    truth = run_with_gradients(reference.fused_experts, wide, upstream_dtype=torch.float32)
    for name, value in actual.items():
        error = (value.double() - truth[name]).norm() / truth[name].norm().clamp(min=1e-30)
        assert error < 2 * torch.finfo(torch.float16).eps, f"{name}: {error:.2e}"


def test_off_by_default(backend: Backend) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    inputs = make_inputs(Case("", Shape(60, 64, 48, 4, 2), balanced)).tensors()
    check_against_truth(moe_ext.fused_experts, reference.fused_experts, inputs, backend=backend)


def test_the_switch_makes_a_difference(backend: Backend) -> None:
    """Not on the CPU, whose products in float32 are that."""
    inputs = make_inputs(Case("", Shape(60, 64, 48, 4, 2), balanced)).tensors()
    plain = run_on(backend, moe_ext.fused_experts, inputs)["output"]
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        other = run_on(backend, moe_ext.fused_experts, inputs)["output"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    if backend.is_cpu:
        assert_same_bits(other, plain, "output")
    else:
        assert not torch.equal(other, plain)
