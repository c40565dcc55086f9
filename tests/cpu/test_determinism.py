"""The same bits again and again: with any number of threads, in any memory, alone or within a batch."""

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support.cases import Case, Shape, balanced, exact_counts, sentinels, skewed
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_same_bits
from tests.support.truth import run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PROBLEMS = (
    Case("skewed", Shape(100, 300, 70, 8, 3), skewed),
    Case("sentinels", Shape(37, 65, 129, 5, 2), sentinels),
    Case("rows_cut", Shape(900, 64, 48, 3, 1), exact_counts((5, 600, 295))),
    Case("k_blocked", Shape(20, 1100, 40, 4, 2), balanced),
)


def assert_all_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    for key, value in actual.items():
        assert_same_bits(value, expected[key], f"{name}: {key}")


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_fused_experts_with_any_number_of_threads(
    cpu_isa: str, problem: Case, dtype: torch.dtype, apply_weights: str
) -> None:
    tensors = make_inputs(problem, dtype, bias=True).tensors()
    torch.set_num_threads(1)
    expected = run_with_gradients(moe_ext.fused_experts, tensors, apply_weights=apply_weights)
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        for _ in range(2):  # the second run finds other memory
            again = run_with_gradients(moe_ext.fused_experts, tensors, apply_weights=apply_weights)
            assert_all_same_bits(again, expected, f"{num_threads} threads")


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_gemm_with_any_number_of_threads(cpu_isa: str, dtype: torch.dtype, transposed: bool) -> None:
    offsets = torch.tensor([0, 3, 3, 610, 700], dtype=torch.int32)
    weight = torch.randn(4, 300, 70) if transposed else torch.randn(4, 70, 300)
    tensors = {
        "rows": torch.randn(720, 300).to(dtype),
        "weight": weight.to(dtype),
        "bias": torch.randn(4, 70).to(dtype),
    }
    arguments = {"expert_offsets": offsets, **tensors}
    torch.set_num_threads(1)
    expected = run_with_gradients(moe_ext.grouped_gemm, arguments, transposed=transposed)
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        again = run_with_gradients(moe_ext.grouped_gemm, arguments, transposed=transposed)
        assert_all_same_bits(again, expected, f"{num_threads} threads")


@pytest.mark.parametrize("layout", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_invariance(cpu_isa: str, dtype: torch.dtype, apply_weights: str, layout: tuple[bool, bool]) -> None:
    """deterministic=True: what belongs to a token (y, and the gradients of x and of its weights) is the same bits
    whether the token comes alone, with some others or in a batch of 400, and wherever it stands there."""
    interleaved, transposed = layout
    options = {
        "interleaved": interleaved, "transposed": transposed, "apply_weights": apply_weights, "deterministic": True
    }  # fmt: skip
    problem = Case("", Shape(400, 150, 70, 3, 2), sentinels)
    tensors = make_inputs(problem, dtype, bias=True, interleaved=interleaved, transposed=transposed).tensors()
    leaves = {name: tensors[name] for name in ("x", "topk_weights")}
    upstream = torch.randn(400, 150).to(dtype)

    def of_tokens(chosen: Tensor) -> list[Tensor]:
        picked = {name: leaf[chosen].requires_grad_() for name, leaf in leaves.items()}
        picked["topk_ids"] = tensors["topk_ids"][chosen]
        y = moe_ext.fused_experts(**tensors | picked, **options)
        return [y.detach(), *torch.autograd.grad(y, [picked["x"], picked["topk_weights"]], upstream[chosen])]

    everything = of_tokens(torch.arange(400))
    batches = [torch.tensor([t]) for t in (0, 1, 17, 399)]
    batches += [torch.arange(5, 5 + count) for count in (2, 15, 16, 17, 33, 300)]
    batches += [torch.randperm(400), torch.arange(399, 0, -7)]
    for chosen in batches:
        for name, part, whole in zip(("y", "grad_x", "grad_topk_weights"), of_tokens(chosen), everything, strict=True):
            assert_same_bits(part, whole[chosen], f"{name} of {len(chosen)} tokens")


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_invariance_of_grouped_gemm(cpu_isa: str, dtype: torch.dtype, transposed: bool) -> None:
    rows, weight = torch.randn(330, 1100).to(dtype), torch.randn(1, 50, 1100).to(dtype)
    weight = weight.mT.contiguous() if transposed else weight
    whole = moe_ext.grouped_gemm(rows, weight, torch.tensor([0, 330], dtype=torch.int32), transposed=transposed)
    for begin, end in ((0, 1), (7, 8), (329, 330), (3, 18), (100, 132), (1, 330)):
        offsets = torch.tensor([0, end - begin], dtype=torch.int32)
        part = moe_ext.grouped_gemm(rows[begin:end], weight, offsets, transposed=transposed)
        assert_same_bits(part, whole[begin:end], f"rows {begin} to {end}")
