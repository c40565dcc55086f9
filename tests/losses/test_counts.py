import pytest
import torch

from moe_ext.losses import expert_counts
from tests.losses.worked_example import COUNTS, topk_ids


def test_worked_example() -> None:
    counts = expert_counts(topk_ids(), 4)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [COUNTS]
    assert expert_counts(topk_ids(), 4, num_sequences=2).tolist() == [[2, 2, 1, 1], [3, 2, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sentinels_are_not_counted(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, -1], [4, 3], [2**31 - 1, -(2**31)], [0, 0]], dtype=dtype)
    assert expert_counts(ids, 4).tolist() == [[3, 0, 0, 1]]


def test_no_tokens() -> None:
    assert expert_counts(torch.empty(0, 2, dtype=torch.int32), 3).tolist() == [[0, 0, 0]]


def test_uneven_sequences_are_an_error() -> None:
    with pytest.raises(ValueError, match="6 tokens do not make 4 sequences"):
        expert_counts(topk_ids(), 4, num_sequences=4)


def test_no_experts_are_an_error() -> None:
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        expert_counts(topk_ids(), 0)


def test_masked_tokens_are_not_counted() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert expert_counts(topk_ids(), 4, token_mask=mask).tolist() == [[4, 2, 2, 0]]
