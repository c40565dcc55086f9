"""noise: Philox 4x32-10 in plain integers, and three distributions of its words.

Sources: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller 1958, "A note
on the generation of random normal deviates".
"""

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox 4x32-10.

    Args:
        counter: ``[..., 4]`` int64 in 0 .. 2^32 - 1.
        key: ``[2]`` int64 in 0 .. 2^32 - 1.

    Returns:
        ``[..., 4]`` int64 in 0 .. 2^32 - 1.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, which leaves their 64 bits right; the shift drags the sign in, which is masked off.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32 & _LOW) ^ c1 ^ k0, b & _LOW, (a >> 32 & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1)


def noise(seed: Tensor, shape: tuple[int, ...], kind: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers that ``seed`` and their flat index determine.

    Number i comes from word ``i % 4`` of the Philox block whose counter is ``i // 4`` and whose key is the seed. The
    distributions are computed in float64, from fractions in float32, and rounded once.

    Args:
        seed: ``[1]`` int64.
        shape: of the result.
        kind: ``uniform`` in (0, 1) | ``normal`` | ``gumbel``.
        dtype: of the result.

    Raises:
        ValueError: an unknown ``kind``.
    """
    count = math.prod(shape)
    block = torch.arange((count + 3) // 4, device=seed.device)
    counter = torch.stack((block & _LOW, block >> 32, torch.zeros_like(block), torch.zeros_like(block)), dim=-1)
    words = philox(counter, torch.cat((seed & _LOW, seed >> 32 & _LOW)))
    # Rounded to float32, which keeps small values apart, and all that matters of them.
    fraction = (((words >> 1).float() + 0.5) * 2.0**-31).double()
    if kind == "uniform":
        values = ((words >> 9).double() + 0.5) * 2.0**-23
    elif kind == "gumbel":
        values = -(-torch.log1p(-fraction.clamp(max=1 - 2.0**-24))).log()
    elif kind == "normal":
        radius = (-2 * fraction[:, 0::2].log()).sqrt()
        angle = 2 * math.pi * (words[:, 1::2].double() * 2.0**-32)
        values = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    else:
        raise ValueError(f"kind: expected uniform, normal or gumbel, got {kind!r}")
    return values.flatten()[:count].reshape(shape).to(dtype)
