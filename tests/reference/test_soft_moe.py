"""The references of soft_dispatch and soft_combine against loops."""

import math

import torch

from moe_ext import reference


def test_against_loops() -> None:
    x, logits = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 2, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    slots = reference.soft_dispatch(x, logits, mask)
    y = reference.soft_combine(slots, logits, mask)
    for b in range(2):
        seen = [t for t in range(4) if mask[b, t]]
        for s in range(2):
            total = sum(math.exp(logits[b, t, s]) for t in seen)
            expected = sum(math.exp(logits[b, t, s]) / total * x[b, t] for t in seen)
            torch.testing.assert_close(slots[b, s], expected)
        for t in range(4):
            total = sum(math.exp(logits[b, t, s]) for s in range(2))
            expected = sum(math.exp(logits[b, t, s]) / total * slots[b, s] for s in range(2))
            torch.testing.assert_close(y[b, t], expected if mask[b, t] else torch.zeros(3, dtype=torch.float64))


def test_a_sequence_of_padding_only_is_zero() -> None:
    x, logits, mask = torch.randn(1, 3, 2), torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)
    assert not reference.soft_dispatch(x, logits, mask).any()
    assert not reference.soft_combine(torch.randn(1, 4, 2), logits, mask).any()
