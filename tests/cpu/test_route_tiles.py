"""Few choices of finite logits have kernels of their own, several rows at a time; the others show what is right.

What many choices, or sums beside them, make of the same rows has to agree bit for bit.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_ext import _C
from tests.support.backends import pinned
from tests.support.tolerance import assert_same_bits

raw = torch.ops.moe_ext
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORINGS = (("softmax", False), ("softmax", True), ("sigmoid", False), ("sqrtsoftplus", False), ("none", False))
INF = float("inf")
each_isa = pytest.mark.parametrize("isa", _C.cpu_isas_available())


def delicate_logits(rows_each: int, num_experts: int) -> Tensor:
    """A few units in the last place apart, tiny, masked by -inf, far apart, huge, tied: where rounding decides."""
    shape = (rows_each, num_experts)
    near_one = 1 + torch.randint(-6, 7, shape) * 2.0**-23
    masked = torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -INF)
    tied = torch.randint(-2, 3, shape).float()
    return torch.cat(
        [near_one, 3 * near_one - 9, 1e-7 * torch.randn(shape), masked, 60 * torch.randn(shape),
         1e30 * torch.randn(shape), tied, torch.randn(shape)]
    )  # fmt: skip


def routed(logits: Tensor, top_k: int, scoring: tuple[str, bool], **groups: Any) -> tuple[Tensor, Tensor]:
    score, softmax_after = scoring
    chosen = {"bias": None, "num_groups": 1, "topk_groups": 1, "group_top": 1, "group_fill": "-inf"} | groups
    return raw.route(logits, top_k, score, softmax_after, *chosen.values(), False, 1e-20, 2.5, "propagate")


@each_isa
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_experts", [20, 128, 257])
def test_few_choices_are_the_first_of_many(
    isa: str, num_experts: int, dtype: torch.dtype, scoring: tuple[str, bool]
) -> None:
    logits = delicate_logits(6, num_experts).to(dtype)
    for bias in (None, torch.randn(num_experts) / 8):
        with pinned(isa):
            all_weights, all_ids = routed(logits, num_experts, scoring, bias=bias)
            for top_k in (1, 2, 8, 10, 16):
                weights, ids = routed(logits, top_k, scoring, bias=bias)
                assert_same_bits(ids, all_ids[:, :top_k].contiguous(), f"{top_k} ids")
                if not scoring[1]:
                    assert_same_bits(weights, all_weights[:, :top_k].contiguous(), f"{top_k} weights")


@each_isa
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize(("size", "num_groups"), [(16, 8), (32, 8), (20, 8), (5, 7), (3, 20), (40, 2), (1, 30)])
def test_groups(isa: str, size: int, num_groups: int, scoring: tuple[str, bool]) -> None:
    """With "0" in place of the other groups' values any number of experts can be chosen, in the same order."""
    logits = delicate_logits(6, size * num_groups)
    for group_top in (1, 2):
        groups = {
            "bias": torch.rand(size * num_groups), "num_groups": num_groups, "topk_groups": num_groups // 2,
            "group_top": min(group_top, size), "group_fill": "0",
        }  # fmt: skip
        with pinned(isa):
            _, all_ids = routed(logits, size * num_groups, scoring, **groups)
            for top_k in (1, 7, 12):
                _, ids = routed(logits, top_k, scoring, **groups)
                assert_same_bits(ids, all_ids[:, :top_k].contiguous(), f"{top_k} ids")


@each_isa
@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("scoring", SCORINGS[:4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [1, 6, 8, 13])
def test_gradient_beside_statistics_without_one(
    isa: str, top_k: int, dtype: torch.dtype, scoring: tuple[str, bool], renormalize: bool
) -> None:
    """Sentinels and repeated ids included."""
    logits = delicate_logits(4, 70).clamp(max=1e4).to(dtype)
    ids = torch.randint(-1, 71, (len(logits), top_k), dtype=torch.int32)
    grad = torch.randn(len(logits), top_k)
    options = (*scoring, renormalize, 1e-20, 2.5, "propagate")
    with pinned(isa):
        alone = raw.route_backward(grad, logits, ids, *options)
        beside = raw.route_with_statistics_backward(grad, torch.zeros(70), None, logits, ids, *options)
    # Adding nothing turns -0 into 0: equal, but not the same bits.
    assert torch.equal(alone.isnan(), beside.isnan())
    assert torch.equal(alone.nan_to_num(0.5), beside.nan_to_num(0.5))
