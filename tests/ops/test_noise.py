"""noise: the same bits everywhere, and of the right distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import moe_ext
from moe_ext import _C, reference
from tests.support.backends import Backend, pinned
from tests.support.tolerance import assert_same_bits

KINDS = ("uniform", "normal", "gumbel")
COUNT = 200_000


def seed_of(number: int) -> Tensor:
    return torch.tensor([number])


def cdf(kind: str, x: Tensor) -> Tensor:
    if kind == "uniform":
        return x
    if kind == "gumbel":
        return (-(-x).exp()).exp()
    return 0.5 * torch.special.erfc(-x / math.sqrt(2))


def distance(sample: Tensor, kind: str) -> float:
    """Kolmogorov and Smirnov's: the largest difference between the distribution of the sample and the true one, times
    the root of its size."""
    x = sample.double().sort().values
    n = x.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    expected = cdf(kind, x)
    return math.sqrt(n) * max(float((steps[1:] - expected).max()), float((expected - steps[:-1]).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 63, 64, 65, 1000])
def test_against_the_reference(backend: Backend, kind: str, count: int) -> None:
    for number in (0, -1, 2**62 + 12345):
        seed = seed_of(number)
        actual = moe_ext.noise(backend.put(seed), (count,), kind).cpu()
        expected = reference.noise(seed, (count,), kind, dtype=torch.float64)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=0 if kind == "uniform" else 1e-6)


@pytest.fixture(scope="module")
def portable_bits() -> dict[str, Tensor]:
    """From the plainest kernel. Made before a test stands on a virtual GPU, where CPU kernels are out of reach."""
    with pinned("portable"):
        return {kind: moe_ext.noise(seed_of(-987654321), (7, 1001), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_everywhere(portable_bits: dict[str, Tensor], backend: Backend, kind: str) -> None:
    for _ in backend.variations():
        actual = moe_ext.noise(backend.put(seed_of(-987654321)), (7, 1001), kind)
        assert_same_bits(actual.cpu(), portable_bits[kind], kind)


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@given(kind=st.sampled_from(KINDS), number=st.integers(-(2**63), 2**63 - 1), count=st.integers(0, 300))
def test_the_same_bits_on_every_instruction_set(isa: str, kind: str, number: int, count: int) -> None:
    with pinned("portable"):
        expected = moe_ext.noise(seed_of(number), (count,), kind)
    with pinned(isa):
        assert_same_bits(moe_ext.noise(seed_of(number), (count,), kind), expected, isa)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(kind: str) -> None:
    results = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        results.append(moe_ext.noise(seed_of(5), (COUNT,), kind))
    assert_same_bits(results[1], results[0], "2 threads")
    assert_same_bits(results[2], results[0], "5 threads")


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_depends_on_its_index_alone(kind: str) -> None:
    long = moe_ext.noise(seed_of(3), (6, 50), kind)
    assert torch.equal(moe_ext.noise(seed_of(3), (7, 13), kind).flatten(), long.flatten()[:91])
    assert moe_ext.noise(seed_of(3), (), kind) == long[0, 0]
    assert moe_ext.noise(seed_of(3), (4, 0, 2), kind).shape == (4, 0, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 1, 2**61 + 17])
def test_kolmogorov_smirnov(kind: str, number: int) -> None:
    # 1.95 is exceeded by one sample in a thousand.
    assert distance(moe_ext.noise(seed_of(number), (COUNT,), kind), kind) < 1.95


@pytest.mark.parametrize("kind", KINDS)
def test_across_seeds_too(kind: str) -> None:
    """The first numbers of neighbouring seeds: as good a sample as the numbers of one."""
    firsts = torch.cat([moe_ext.noise(seed_of(number), (5,), kind) for number in range(4000)])
    assert distance(firsts, kind) < 1.95


@pytest.mark.parametrize(
    ("kind", "mean", "variance"),
    [("uniform", 0.5, 1 / 12), ("normal", 0.0, 1.0), ("gumbel", 0.5772156649, math.pi**2 / 6)],
)
def test_moments(kind: str, mean: float, variance: float) -> None:
    x = moe_ext.noise(seed_of(42), (COUNT,), kind).double()
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / COUNT)
    assert abs(x.var() / variance - 1) < 0.02
    for lag in (1, 2, 3, 4, 64):
        assert abs(((x[lag:] - mean) * (x[:-lag] - mean)).mean() / variance) < 4 / math.sqrt(COUNT)


def test_normal_tails_and_symmetry() -> None:
    x = moe_ext.noise(seed_of(7), (2_000_000,), "normal").double()
    assert abs((x**3).mean()) < 0.0125
    assert abs((x**4).mean() - 3) < 0.032
    for limit, share in ((2.0, 0.0455003), (3.0, 0.0026998), (4.0, 6.334e-5)):
        found = float((x.abs() > limit).double().mean())
        assert abs(found - share) < 4 * math.sqrt(share / x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_uniform_never_reaches_its_ends(dtype: torch.dtype) -> None:
    x = moe_ext.noise(seed_of(0), (3_000_000,), "uniform", dtype=dtype)
    assert x.dtype == dtype
    assert x.min() > 0
    assert x.max() < 1


def test_gumbel_picks_in_proportion_to_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    picks = (logits + moe_ext.noise(seed_of(9), (COUNT, 4), "gumbel")).argmax(dim=1)
    shares = torch.bincount(picks, minlength=4) / COUNT
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.005)


def test_checkpointing_repeats_the_numbers() -> None:
    drawn: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seed = torch.randint(0, 2**62, (1,), dtype=torch.int64, device=x.device)
        drawn.append(moe_ext.noise(seed, (3, 5), "normal"))
        return (x * drawn[-1]).sin()

    x = torch.randn(3, 5, requires_grad=True)
    y = checkpoint(forward, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    first, again = drawn
    assert torch.equal(first, again)
    torch.testing.assert_close(grad, (x * first).cos() * first)


def test_compiled_with_symbolic_sizes() -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def noisy(x: Tensor, seed: Tensor) -> Tensor:
        return x + moe_ext.noise(seed, x.shape, "gumbel")

    for num_tokens in (5, 8, 33):
        x = torch.zeros(num_tokens, 3)
        assert torch.equal(noisy(x, seed_of(1)), moe_ext.noise(seed_of(1), (num_tokens, 3), "gumbel"))
