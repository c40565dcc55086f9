"""Random numbers that are a function of (seed, index), so that recomputed activations meet the same ones."""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["uniform", "normal", "gumbel"]


def draw_seed(device: torch.device) -> Tensor:
    """[1] int64 from torch's own generator, which checkpointing restores before it recomputes."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def random(seed: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
    """float32 of `shape`: "uniform" in (0, 1), "normal" of mean 0 and variance 1, or standard "gumbel"."""
    count = 1
    for size in shape:
        count *= size
    # A 64-bit mix (Steele et al. 2014, splitmix64) of seed and index; int64 arithmetic wraps.
    state = seed + torch.arange(count, device=seed.device) * -7046029254386353131
    state = (state ^ _shift(state, 30)) * -4658895280553007687
    state = (state ^ _shift(state, 27)) * -7723592293110705685
    state = state ^ _shift(state, 31)
    uniform = ((_shift(state, 40).float() + 0.5) * 2.0**-24).reshape(shape)
    if kind == "uniform":
        return uniform
    if kind == "gumbel":
        return -(-uniform.log()).log()
    return torch.erfinv(2 * uniform - 1) * 2**0.5


def _shift(x: Tensor, bits: int) -> Tensor:
    # int64 shifts keep the sign; the bits that it drags in are cleared.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
