"""What decides the way of the data is the same on a GPU and on the CPU, to the last integer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support import backends, virtual
from tests.support.backends import Backend
from tests.support.cases import CASES
from tests.support.inputs import make_inputs, make_logits

put = Backend("virtual:any").put
pytestmark = pytest.mark.virtual


def assert_same(actual: list[Tensor], expected: list[Tensor], names: tuple[str, ...], problem: str) -> None:
    for name, got, want in zip(names, actual, expected, strict=True):
        assert torch.equal(got, want), f"{problem}: {name}"


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_route_and_permute(dtype: torch.dtype, score: str) -> None:
    """Random logits: close scores in float32, ties in 16 bits."""

    def run(logits: Tensor, num_experts: int, top_k: int) -> list[Tensor]:
        ids = moe_ext.route(logits, top_k, score=score, renormalize=True).topk_ids
        return [ids, *moe_ext.permute(ids, num_experts)]

    names = ("topk_ids", *moe_ext.Permutation._fields)
    for num_tokens, num_experts, top_k in ((40, 64, 8), (3, 256, 8), (70, 7, 2), (5, 600, 40)):
        logits = make_logits(num_tokens, num_experts, dtype)
        expected = run(logits, num_experts, top_k)
        with virtual.ops_on("sm_80", **backends.behaviour(f"{dtype} {score}")):
            assert_same(run(put(logits), num_experts, top_k), expected, names, f"{num_experts} experts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chip", backends.CHIPS)
def test_indices_kept_by_fused_experts(chip: str, dtype: torch.dtype) -> None:
    """Also where few rows are sorted without a kernel of their own."""

    def run(x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> list[Tensor]:
        _, _, *indices = torch.ops.moe_ext.fused_experts(
            x, w_gate_up, w_down, topk_weights, topk_ids, None, None, "swiglu", 1.702, 7.0, False, False, "output",
            "preact", None, False,
        )  # fmt: skip
        return indices

    for problem in CASES:
        tensors = make_inputs(problem, dtype).tensors()
        expected = run(**tensors)
        with virtual.ops_on(chip, **backends.behaviour(f"{chip} {problem}")):
            assert_same(run(**put(tensors)), expected, ("expert_offsets", "slot_to_row"), problem.name)
