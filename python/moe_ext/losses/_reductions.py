"""Sums over tokens: per sequence, per label, and over the ranks of a process group.

**Process groups.** Data-parallel training averages gradients over its ranks. So that this average is the gradient of
the loss of the global batch, a differentiable sum over a group of R ranks has the value of the global sum and R times
the gradient of the rank's own part. Nothing is communicated in backward.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from moe_ext.ops._precision import no_autocast


def per_sequence(x: Tensor, num_sequences: int) -> Tensor:
    """[T, ...] -> [B, ...], the sum over the tokens of each sequence."""
    return x.unflatten(0, (num_sequences, x.shape[0] // num_sequences)).sum(1)


def per_label(x: Tensor, labels: Tensor, num_labels: int, counted: Tensor) -> Tensor:
    """[T, N], labels [T], counted [T] bool -> [num_labels, N], the sum over the tokens of each label.

    A product with the one-hot matrix: the order of the additions, unlike that of an index_add, is always the same.
    Rows that don't count must be finite all the same: they are multiplied by zero.
    """
    one_hot = (labels[None, :] == torch.arange(num_labels, device=labels.device)[:, None]) & counted
    with no_autocast(x.device.type):
        return one_hot.to(x.dtype) @ x


def mean_over_sequences(loss: Tensor, num_counted: Tensor) -> Tensor:
    """[B] -> scalar; sequences without any counted token don't enter the mean."""
    return loss.sum() / (num_counted > 0).sum().clamp(min=1)


def mean_over_tokens(x: Tensor, token_mask: Tensor | None, group: dist.ProcessGroup | None = None) -> Tensor:
    """[...] -> scalar, the mean over the tokens that count, 0 where none does. Those that don't must be finite.

    With a group, divided by the mean number of tokens of its ranks: the mean over ranks is then that over all tokens.
    """
    if token_mask is None and group is None:
        return x.sum() / max(x.numel(), 1)
    counted = torch.ones_like(x) if token_mask is None else token_mask.to(x.dtype)
    num_tokens = count_over_group(counted.sum(), group) / group_size(group)
    # Not clamped to 1: of a rank without tokens, the mean over ranks may be below that.
    return (x * counted).sum() / num_tokens.where(num_tokens > 0, 1)


def group_size(group: dist.ProcessGroup | None) -> int:
    """R; 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def count_over_group(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a tensor without gradient. Without a group, the tensor itself."""
    if group is None:
        return counts
    counts = counts.detach().clone()
    dist.all_reduce(counts, group=group)
    return counts


def sum_over_group(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks, differentiable as said above. Without a group, x itself."""
    if group is None:
        return x
    return count_over_group(x, group) + group_size(group) * (x - x.detach())
