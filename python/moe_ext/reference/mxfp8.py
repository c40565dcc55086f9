"""MXFP8: the form in which a pre-activation is kept, a byte per value and one more for every 32 of them.

OCP Microscaling Formats (MX) Specification v1.0: blocks of 32 values in FP8 E4M3 share a scale in E8M0, a power of two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
LARGEST = 448.0  # of e4m3
NAN = 0x7F


def mxfp8_row_bytes(preact_size: int, *, gated: bool) -> int:
    """Bytes of a row of ``preact_size`` values: the values, then the scales of gate, then those of up."""
    parts = 2 if gated else 1
    return preact_size + parts * -(-preact_size // parts // BLOCK)


def _parts(preact: Tensor, gated: bool, interleaved: bool) -> list[Tensor]:
    if not gated:
        return [preact]
    return [preact[:, 0::2], preact[:, 1::2]] if interleaved else list(preact.chunk(2, dim=1))


def mxfp8_encode(preact: Tensor, *, gated: bool, interleaved: bool = False) -> Tensor:
    """Rounds a pre-activation to MXFP8.

    A block's scale is ``2 ** (floor(log2(largest)) - 8)`` of its largest finite magnitude, within 2^-127 .. 2^127, and
    1 where all are zero. A value over its scale is rounded to the nearest e4m3, ties to even, saturating at 448. What
    is not finite becomes NaN with its sign.

    Args:
        preact: ``[R, G]``, any floating dtype; float64 is rounded to float32 first.
        gated, interleaved: whether G holds gate and up, and whether they alternate. Each has blocks of its own.

    Returns:
        uint8 ``[R, mxfp8_row_bytes(G)]``: the values in the order of preact, then the scales.
    """
    codes = torch.empty(preact.shape, dtype=torch.uint8, device=preact.device)
    scales = []
    for part, target in zip(_parts(preact.float(), gated, interleaved), _parts(codes, gated, interleaved), strict=True):
        rows, columns = part.shape
        blocks = F.pad(part, (0, -columns % BLOCK)).reshape(rows, -(-columns // BLOCK), BLOCK)
        finite = blocks.isfinite()
        largest = torch.where(finite, blocks.abs(), 0.0).amax(dim=2, keepdim=True)
        exponent = torch.frexp(largest).exponent - 1 - 8  # frexp's fraction is in 0.5 .. 1
        exponent = torch.where(largest == 0, 0, exponent.clamp(min=-127))
        scaled = torch.ldexp(blocks.double(), -exponent).clamp(-LARGEST, LARGEST)
        rounded = scaled.float().to(torch.float8_e4m3fn).view(torch.uint8)
        negative = torch.signbit(blocks).to(torch.uint8) << 7
        rounded = torch.where(finite, rounded, NAN | negative)
        target.copy_(rounded.flatten(1)[:, :columns])
        scales.append((exponent + 127).to(torch.uint8).squeeze(2))
    return torch.cat([codes, *scales], dim=1)


def mxfp8_decode(
    kept: Tensor, preact_size: int, *, gated: bool, interleaved: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The pre-activation ``[R, preact_size]`` that ``mxfp8_encode`` kept, in float32 and rounded to dtype once."""
    codes, scales = kept.split([preact_size, kept.shape[1] - preact_size], dim=1)
    values = codes.contiguous().view(torch.float8_e4m3fn).float()
    parts = _parts(values, gated, interleaved)
    for part, part_scales in zip(parts, scales.chunk(len(parts), dim=1), strict=True):
        factors = part_scales.contiguous().view(torch.float8_e8m0fnu).float()
        part *= factors.repeat_interleave(BLOCK, dim=1)[:, : part.shape[1]]
    return values.to(dtype)
