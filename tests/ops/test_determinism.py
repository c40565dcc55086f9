"""The same bits again and again: with any number of threads, in any order and memory, alone or within a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.cases import Case, Shape, balanced, exact_counts, sentinels, skewed
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_same_bits
from tests.support.truth import run_on

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PROBLEMS = (
    Case("skewed", Shape(100, 300, 70, 8, 3), skewed),
    Case("sentinels", Shape(37, 65, 129, 5, 2), sentinels),
    Case("rows_cut", Shape(900, 64, 48, 3, 1), exact_counts((5, 600, 295))),
    Case("k_blocked", Shape(20, 1100, 40, 4, 2), balanced),
)


# The same on an emulator, with multiples of 16 bytes for the tensor cores but in one of them.
SMALL = {
    "skewed": Case("skewed", Shape(60, 136, 40, 8, 3), skewed),
    "sentinels": Case("sentinels", Shape(37, 65, 29, 5, 2), sentinels),
    "rows_cut": Case("rows_cut", Shape(300, 32, 24, 3, 1), exact_counts((5, 200, 95))),
    "k_blocked": Case("k_blocked", Shape(10, 520, 40, 4, 2), balanced),
}


def assert_no_variation(
    backend: Backend, function: Callable[..., Tensor], tensors: dict[str, Tensor], **options: Any
) -> None:
    """Output and gradients have the same bits whatever may vary."""
    if backend.is_cpu:
        torch.set_num_threads(1)
    expected = run_on(backend, function, tensors, **options)
    for variation in backend.variations():
        for name, value in run_on(backend, function, tensors, **options).items():
            assert_same_bits(value, expected[name], f"{variation}: {name}")


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_fused_experts(backend: Backend, problem: Case, dtype: torch.dtype, apply_weights: str) -> None:
    problem = SMALL[problem.name] if backend.is_virtual else problem
    tensors = make_inputs(problem, dtype, bias=True).tensors()
    assert_no_variation(backend, moe_ext.fused_experts, tensors, apply_weights=apply_weights)


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_gemm(backend: Backend, dtype: torch.dtype, transposed: bool) -> None:
    offsets = torch.tensor([0, 3, 3, 610, 700], dtype=torch.int32)
    in_features = 72 if backend.is_virtual else 300
    weight = torch.randn(4, in_features, 70) if transposed else torch.randn(4, 70, in_features)
    tensors = {
        "rows": torch.randn(720, in_features).to(dtype),
        "weight": weight.to(dtype),
        "bias": torch.randn(4, 70).to(dtype),
        "expert_offsets": offsets,
    }
    assert_no_variation(backend, moe_ext.grouped_gemm, tensors, transposed=transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine(backend: Backend, dtype: torch.dtype) -> None:
    perm = backend.put(reference.permute(torch.randint(-1, 17, (700, 4)), 16))
    weights_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {"rows": torch.randn(2800, 130).to(dtype), "topk_weights": torch.randn(700, 4).to(weights_dtype)}
    assert_no_variation(backend, lambda **given: moe_ext.combine(**given, perm=moe_ext.Permutation(*perm)), tensors)


@pytest.mark.parametrize("op", [moe_ext.soft_dispatch, moe_ext.soft_combine])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_moe(backend: Backend, dtype: torch.dtype, op: Callable[..., Tensor]) -> None:
    sizes = (2, 40, 24) if backend.is_virtual else (3, 300, 170)
    data = torch.randn(sizes[0], sizes[1 if op is moe_ext.soft_dispatch else 2], 40).to(dtype)
    tensors = {"data": data, "logits": torch.randn(sizes).to(dtype), "token_mask": torch.rand(sizes[:2]) > 0.2}
    assert_no_variation(backend, lambda data, logits, token_mask: op(data, logits, token_mask), tensors)


@pytest.mark.parametrize("layout", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_invariance(backend: Backend, dtype: torch.dtype, apply_weights: str, layout: tuple[bool, bool]) -> None:
    """deterministic=True: what belongs to a token (y, and the gradients of x and of its weights) is the same bits
    whether the token comes alone, with some others or in a large batch, and wherever it stands there."""
    interleaved, transposed = layout
    options = {
        "interleaved": interleaved, "transposed": transposed, "apply_weights": apply_weights, "deterministic": True
    }  # fmt: skip
    num_tokens = 80 if backend.is_virtual else 400
    # Multiples of 16 bytes, or kernels without tensor cores would have to do it.
    hidden_size, intermediate_size = (150, 70) if backend.is_cpu else (160, 72)
    problem = Case("", Shape(num_tokens, hidden_size, intermediate_size, 3, 2), sentinels)
    inputs = make_inputs(problem, dtype, bias=True, interleaved=interleaved, transposed=transposed)
    tensors = backend.put(inputs.tensors())
    leaves = {name: tensors[name] for name in ("x", "topk_weights")}
    upstream = backend.put(torch.randn(num_tokens, hidden_size).to(dtype))

    def of_tokens(chosen: Tensor) -> list[Tensor]:
        picked = {name: leaf[chosen].requires_grad_() for name, leaf in leaves.items()}
        picked["topk_ids"] = tensors["topk_ids"][chosen]
        y = moe_ext.fused_experts(**tensors | picked, **options)
        return [y.detach(), *torch.autograd.grad(y, [picked["x"], picked["topk_weights"]], upstream[chosen])]

    everything = of_tokens(torch.arange(num_tokens))
    if backend.is_virtual:
        batches = [torch.tensor([17]), torch.arange(5, 22), torch.randperm(80)]
    else:
        batches = [torch.tensor([t]) for t in (0, 1, 17, 399)]
        batches += [torch.arange(5, 5 + count) for count in (2, 15, 16, 17, 33, 300)]
        batches += [torch.randperm(400), torch.arange(399, 0, -7)]
    for chosen in batches:
        for name, part, whole in zip(("y", "grad_x", "grad_topk_weights"), of_tokens(chosen), everything, strict=True):
            assert_same_bits(part, whole[chosen], f"{name} of {len(chosen)} tokens")


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_invariance_of_grouped_gemm(backend: Backend, dtype: torch.dtype, transposed: bool) -> None:
    in_features, out_features = (1100, 50) if backend.is_cpu else (1104, 56)
    rows, weight = torch.randn(330, in_features).to(dtype), torch.randn(1, out_features, in_features).to(dtype)
    rows, weight = backend.put((rows, weight.mT.contiguous() if transposed else weight))
    offsets = backend.put(torch.tensor([0, 330], dtype=torch.int32))
    whole = moe_ext.grouped_gemm(rows, weight, offsets, transposed=transposed)
    for begin, end in ((0, 1), (7, 8), (329, 330), (3, 18), (100, 132), (1, 330)):
        offsets = backend.put(torch.tensor([0, end - begin], dtype=torch.int32))
        part = moe_ext.grouped_gemm(rows[begin:end], weight, offsets, transposed=transposed)
        assert_same_bits(part, whole[begin:end], f"rows {begin} to {end}")
