"""The MXFP8 codec against the definition of e4m3 and e8m0, worked out in Python's own numbers."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moe_ext.reference.mxfp8 import mxfp8_decode, mxfp8_encode, mxfp8_row_bytes


def value_of(code: int) -> float:
    """Of an e4m3 byte: a sign, four bits of exponent with bias 7, three of fraction; all ones are NaN."""
    sign, exponent, fraction = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and fraction == 7:
        return math.nan
    return sign * (math.ldexp(fraction, -9) if exponent == 0 else math.ldexp(8 + fraction, exponent - 10))


MAGNITUDES = [value_of(code) for code in range(127)]


def nearest(value: float) -> int:
    """The code without sign, ties to the even one, saturating."""
    return min(range(127), key=lambda code: (abs(MAGNITUDES[code] - value), code & 1))


def encoded_block(block: list[float]) -> tuple[list[int], int]:
    """The definition, value by value."""
    largest = max((abs(x) for x in block if math.isfinite(x)), default=0.0)
    exponent = max(math.frexp(largest)[1] - 1 - 8, -127) if largest else 0
    codes = [nearest(math.ldexp(abs(x), -exponent)) if math.isfinite(x) else 127 for x in block]
    return [code | (math.copysign(1, x) < 0) << 7 for code, x in zip(codes, block, strict=True)], exponent + 127


def check(preact: Tensor, *, gated: bool = False, interleaved: bool = False) -> Tensor:
    """Encodes, compares with the definition and with what decodes, and returns the bytes."""
    preact_size = preact.shape[1]
    kept = mxfp8_encode(preact, gated=gated, interleaved=interleaved)
    assert kept.dtype == torch.uint8
    assert kept.shape == (preact.shape[0], mxfp8_row_bytes(preact_size, gated=gated))
    decoded = mxfp8_decode(kept, preact_size, gated=gated, interleaved=interleaved)
    size = preact_size // 2 if gated else preact_size
    expected = torch.empty(preact.shape)
    for i, (row, kept_row) in enumerate(zip(preact.float().tolist(), kept.tolist(), strict=True)):
        scales = kept_row[preact_size:]
        for part in range(2 if gated else 1):
            places = [2 * j + part if interleaved else part * size + j for j in range(size)]
            for begin in range(0, size, 32):
                block = places[begin : begin + 32]
                codes, scale = encoded_block([row[j] for j in block])
                assert [kept_row[j] for j in block] == codes
                assert scales.pop(0) == scale
                for j, code in zip(block, codes, strict=True):
                    expected[i, j] = math.ldexp(value_of(code), scale - 127)
        assert not scales
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(decoded[expected == 0].signbit(), preact[expected == 0].signbit())
    return kept


def test_every_code_is_that_of_torch() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).double()
    expected = torch.tensor([value_of(code) for code in range(256)], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    finite = torch.cat([torch.arange(127), torch.arange(128, 255)]).to(torch.uint8)
    assert torch.equal(expected[finite.int()].float().to(torch.float8_e4m3fn).view(torch.uint8), finite)


@pytest.mark.parametrize("exponent", [-135, -126, -9, 0, 100, 119])
def test_every_value_and_every_tie_between_two(exponent: int) -> None:
    """With 256 in the same block the scale is 2^exponent."""
    ties = torch.tensor([(a + b) / 2 for a, b in pairwise(MAGNITUDES)])
    near = [torch.nextafter(ties, torch.tensor(to)) for to in (0.0, math.inf)]
    values = torch.cat([torch.tensor(MAGNITUDES), ties, *near])
    values = torch.cat([values, -values, torch.zeros(-2 * values.numel() % 31)]).reshape(-1, 31)
    rows = torch.cat([torch.full((values.shape[0], 1), 256.0), values], dim=1)
    check(torch.ldexp(rows.double(), torch.tensor(exponent)).float())


def test_scales_at_the_powers_of_two() -> None:
    powers = torch.tensor([math.ldexp(1, e) for e in range(-149, 128)], dtype=torch.float64)
    factors = torch.tensor([1.0, 2 - 2.0**-23, 1.5])
    rows = (powers[:, None] * factors).float()
    rows = rows[rows.isfinite().all(1)]
    kept = check(rows.reshape(-1, 1))
    assert kept[:, 1].min() == 0
    assert kept[:, 1].max() == 246


def test_what_is_not_finite_becomes_nan_and_does_not_scale() -> None:
    inf, nan = math.inf, math.nan
    rows = torch.tensor([[inf, 1.0, -3.0], [-inf, 2.0, nan], [nan, nan, nan], [inf, -inf, 0.0]])
    kept = check(rows)
    assert kept[:, 3].tolist() == [120, 120, 127, 127]
    decoded = mxfp8_decode(kept, 3, gated=False)
    assert decoded.isnan().tolist() == (~rows.isfinite()).tolist()
    assert decoded[0, 1:].tolist() == [1.0, -3.0]


def test_zeros_keep_their_sign() -> None:
    kept = check(torch.tensor([[0.0, -0.0], [-0.0, 2.0**-149]]))
    assert kept.tolist() == [[0, 0x80, 127], [0x80, 0, 0]]


@pytest.mark.parametrize("size", [1, 16, 31, 32, 33, 64, 70])
@pytest.mark.parametrize(("gated", "interleaved"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_blocks(size: int, gated: bool, interleaved: bool, dtype: torch.dtype) -> None:
    """Gate and up have blocks of their own, which a row ends wherever it ends."""
    preact = torch.randn(3, 2 * size if gated else size) * torch.tensor([[1.0], [1e-3], [100.0]])
    preact = preact.to(dtype)
    kept = check(preact, gated=gated, interleaved=interleaved)
    decoded = mxfp8_decode(kept, preact.shape[1], gated=gated, interleaved=interleaved, dtype=dtype)
    assert decoded.dtype == dtype
    # Half a step of three bits of fraction, or an eighth where the largest saturates.
    largest = preact.abs().amax(dim=1, keepdim=True)
    assert ((decoded - preact).abs() <= preact.abs() / 8 + largest * 2.0**-16).all()


@pytest.mark.parametrize("shape", [(0, 64), (0, 0), (3, 0)])
@pytest.mark.parametrize("gated", [False, True])
def test_sizes_of_zero(shape: tuple[int, int], gated: bool) -> None:
    kept = check(torch.zeros(shape), gated=gated)
    assert mxfp8_decode(kept, shape[1], gated=gated).shape == shape
