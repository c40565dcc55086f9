"""Random numbers that are a function of (seed, index), so that recomputed activations meet the same ones."""

from typing import Literal

import torch
from torch import Tensor

from moe_ext.ops import noise

Kind = Literal["uniform", "normal", "gumbel"]


def draw_seed(device: torch.device) -> Tensor:
    """[1] int64 from torch's own generator, which checkpointing restores before it recomputes."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def random(seed: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
    """float32 of `shape`: "uniform" in (0, 1), "normal" of mean 0 and variance 1, or standard "gumbel"."""
    return noise(seed, shape, kind)
