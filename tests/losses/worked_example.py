"""Logits small enough to check by hand; the expected numbers in these tests were computed apart from this library."""

import torch
from torch import Tensor

# Ties in rows 2, 3 and 4: the lower index wins.
LOGITS = [[2, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]]
TOP_2 = [[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]]
COUNTS = [5, 4, 2, 1]


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(LOGITS, dtype=dtype)


def topk_ids() -> Tensor:
    return torch.tensor(TOP_2, dtype=torch.int32)
