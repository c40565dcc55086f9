"""noise: random numbers as a function of a seed and an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._autograd import call
from ._library import fake, raw

KINDS = ("uniform", "normal", "gumbel")


def noise(seed: Tensor, shape: Sequence[int], kind: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers that ``seed`` and their flat index determine: the same bits on every device, every time.

    Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the seed and countered
    by the index, so number i does not depend on ``shape``. Drawn from torch's generator, a seed is drawn again where
    checkpointing repeats a forward pass, and the numbers with it. Not differentiable. Different kinds of one seed are
    made of the same bits: draw a seed for each use.

    Args:
        seed: ``[1]`` int64; the result is on its device.
        shape: of the result.
        kind: "uniform" in (0, 1), both ends excluded; "normal" of mean 0 and variance 1 (Box and Muller 1958), below
            6.7 in magnitude; "gumbel", the standard distribution, from -2.9 to 22.2.
        dtype: float32, bfloat16, float16 or float64. The numbers are made in float32 and converted; a "uniform" that
            would round to 0 or 1 is replaced by its neighbour inside.

    Returns:
        ``shape`` in ``dtype``, contiguous.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape of ``seed``, a negative size, or an unknown ``kind``.
    """
    name = "noise"
    _checks.is_tensor(name, "seed", seed, (torch.int64,))
    _checks.has_shape(name, "seed", seed, "1", (1,))
    if not isinstance(shape, tuple | list):
        raise TypeError(f"moe_ext.{name}: shape must be a tuple or list of ints, got {type(shape).__name__}")
    for size in shape:
        _checks.is_int(name, "every size of shape", size, low=0)
    _checks.is_choice(name, "kind", kind, KINDS)
    if dtype not in _checks.DATA_DTYPES:
        raise TypeError(f"moe_ext.{name}: dtype must be float32 or bfloat16 or float16 or float64, got {dtype}")
    result: Tensor = call(_noise, seed, list(shape), kind)
    if kind == "uniform" and dtype.itemsize < 4:
        limits = torch.finfo(dtype)
        result = result.clamp(limits.smallest_normal * limits.eps, 1 - limits.eps / 2)
    return result.to(dtype)


@fake("noise")
def _noise_fake(seed: Tensor, shape: Any, kind: str) -> Tensor:
    return seed.new_empty(shape, dtype=torch.float32)


_noise = raw("noise")
