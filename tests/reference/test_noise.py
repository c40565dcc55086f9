"""The reference of noise, against the generator's published test vectors and torch's own distributions."""

import math

import torch

from moe_ext import reference


def test_known_answers_of_the_generator() -> None:
    """The test vectors that come with the authors' library, Random123."""
    for counter, key, answer in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        assert reference.philox(torch.tensor(counter), torch.tensor(key)).tolist() == answer


def test_the_distributions_of_known_words() -> None:
    """Of the block whose counter and key are 0, the first of the vectors above."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seed = torch.zeros(1, dtype=torch.int64)
    u = [w / 2**32 for w in words]
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(reference.noise(seed, (4,), "uniform"), torch.tensor(u), **close)
    gumbel = torch.tensor([-math.log(-math.log(1 - v)) for v in u])
    torch.testing.assert_close(reference.noise(seed, (4,), "gumbel"), gumbel, **close)
    r0, r1 = math.sqrt(-2 * math.log(u[0])), math.sqrt(-2 * math.log(u[2]))
    a0, a1 = 2 * math.pi * u[1], 2 * math.pi * u[3]
    normal = [r0 * math.cos(a0), r0 * math.sin(a0), r1 * math.cos(a1), r1 * math.sin(a1)]
    torch.testing.assert_close(reference.noise(seed, (2, 2), "normal").flatten(), torch.tensor(normal), **close)


def test_counters_beyond_32_bits() -> None:
    high = reference.philox(torch.tensor([[5, 1, 0, 0], [5, 0, 0, 0]]), torch.tensor([1, 2]))
    assert not torch.equal(high[0], high[1])
