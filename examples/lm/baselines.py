"""What counting can do: byte n-gram models, the bar that the neural model has to clear."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import VOCAB_SIZE


def _context_codes(text: Tensor, order: int, first: int) -> Tensor:
    """For each position from `first` on, the `order` bytes before it as one int64."""
    codes = torch.zeros(len(text) - first, dtype=torch.int64)
    for back in range(order, 0, -1):
        codes = codes * VOCAB_SIZE + text[first - back : len(text) - back].long()
    return codes


def _lookup(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """values[i] where keys[i] == wanted, and 0 where there is no such key (`keys` sorted)."""
    at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, values[at], 0).double()


class NGram:
    """Interpolated Witten-Bell byte model: the next byte from the `order` bytes before it.

    With c(h, b) the count of byte b after context h in the training text, N(h) their sum and D(h) the number of
    different bytes seen after h,

        p(b | h) = (c(h, b) + D(h) * p(b | h without its oldest byte)) / (N(h) + D(h)),

    down to the uniform distribution; a context never seen passes the shorter one's probability on. Nothing is
    left to tune. Source: Witten & Bell 1991, "The zero-frequency problem"; interpolation as in Chen & Goodman
    1998. `order` is at most 6, so that context and byte fit an int64.
    """

    def __init__(self, train: Tensor, order: int) -> None:
        if not 0 <= order <= 6:
            raise ValueError(f"order must be in 0..6, got {order}")
        self.order = order
        self._levels = []
        for n in range(order + 1):
            contexts = _context_codes(train, n, n)
            pairs, pair_counts = torch.unique(contexts * VOCAB_SIZE + train[n:].long(), return_counts=True)
            keys, distinct = torch.unique_consecutive(pairs // VOCAB_SIZE, return_counts=True)
            totals = torch.zeros(len(keys), dtype=torch.int64)
            totals.index_add_(0, torch.searchsorted(keys, pairs // VOCAB_SIZE), pair_counts)
            self._levels.append((pairs, pair_counts, keys, distinct, totals))

    def probabilities(self, text: Tensor) -> Tensor:
        """p of each byte of `text` (uint8 `[n]`) given those before it, float64 `[n]`.

        The first bytes have shorter contexts and use the shorter models.
        """
        result = torch.full((len(text),), 1 / VOCAB_SIZE, dtype=torch.float64)
        for n, (pairs, pair_counts, keys, distinct, totals) in enumerate(self._levels):
            if len(text) <= n:
                break
            contexts = _context_codes(text, n, n)
            count = _lookup(pairs, pair_counts, contexts * VOCAB_SIZE + text[n:].long())
            kinds, total = _lookup(keys, distinct, contexts), _lookup(keys, totals, contexts)
            longer = (count + kinds * result[n:]) / (total + kinds).clamp(min=1)
            result[n:] = torch.where(total > 0, longer, result[n:])
        return result

    def bits_per_byte(self, text: Tensor) -> float:
        """Mean -log2 p over every byte of `text` but the first, the same bytes the neural model is scored on."""
        return float(-self.probabilities(text)[1:].log2().mean())
