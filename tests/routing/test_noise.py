"""Noise: its size, when it acts, that it can be repeated, and that it can be learned."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_ext.losses import load_loss
from moe_ext.routing import (
    GaussianNoise,
    GumbelNoise,
    Jitter,
    LearnedNoise,
    LinearLogits,
    Router,
    TaskLogits,
    TopK,
    published,
)
from tests.losses.worked_example import logits

T, H, E = 4096, 6, 8

NOISES = {
    "gaussian": lambda: GaussianNoise(),
    "gumbel": lambda: GumbelNoise(),
    "learned": lambda: LearnedNoise(LinearLogits(H, E), min_std=1e-2),
}
noises = pytest.mark.parametrize("build", NOISES.values(), ids=NOISES)


def test_learned_noise_of_the_worked_example() -> None:
    sample = torch.tensor([[0.1, -0.2, 0.3, 0]], dtype=torch.float64)
    noise = LearnedNoise(LinearLogits(H, 4, init_std=0.0)).double()
    x = torch.randn(1, H, dtype=torch.float64)
    torch.testing.assert_close(noise.std(x), torch.full((1, 4), math.log(2), dtype=torch.float64))
    expected = torch.tensor([[2.069315, 0.861371, 0.207944, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(noise(logits()[:1], x, sample=sample), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "build", [lambda: published.noisy_top_k(H, E, 2, init_std=0.3), lambda: published.v_moe(H, E, 2)]
)
def test_a_router_hands_over_what_the_loss_on_the_load_takes(build) -> None:
    router, x = build(), torch.randn(16, H)
    torch.manual_seed(2)
    expected = router(x)
    torch.manual_seed(2)
    output, noise = router(x, return_noise=True)
    for a, b in zip(output, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(noise.noisy_logits, output.router_logits)
    assert torch.equal(noise.clean_logits, router.logits(x))
    std = router.noise.std(x) if isinstance(router.noise, LearnedNoise) else 1 / E
    assert torch.as_tensor(noise.noise_std == std).all()
    gradients = torch.autograd.grad(load_loss(*noise, 2), list(router.parameters()))
    assert all((grad != 0).any() for grad in gradients)
    # Without noise the load is still that of the noise there would be.
    _, noise = router.eval()(x, return_noise=True)
    assert torch.equal(noise.noisy_logits, noise.clean_logits)
    assert load_loss(*noise, 2).isfinite()


def test_the_noise_of_a_task_and_in_one_graph() -> None:
    router = published.mod_squad(H, E, 2, 3, noise_at_eval=False).eval()
    x, task_ids = torch.randn(16, H), torch.arange(16) % 3
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    expected = router(x, task_ids=task_ids, return_noise=True)
    for a, b in zip(compiled(x, task_ids=task_ids, return_noise=True), expected, strict=True):
        for c, d in zip(a, b, strict=True):
            torch.testing.assert_close(c, d)


@pytest.mark.parametrize("noise", [None, GumbelNoise()])
def test_no_normal_noise_has_no_deviation_to_hand_over(noise: nn.Module | None) -> None:
    router = Router(LinearLogits(H, E), TopK(E, 2), noise=noise)
    with pytest.raises(ValueError, match="return_noise=True needs GaussianNoise or LearnedNoise, got"):
        router(torch.randn(4, H), return_noise=True)


@noises
def test_only_while_training_unless_told_otherwise(build) -> None:
    noise = build()
    z, x = torch.zeros(16, E), torch.randn(16, H)
    assert not torch.equal(noise(z, x), z)
    noise.eval()
    assert noise(z, x) is z
    noise.at_eval = True
    assert not torch.equal(noise(z, x), z)


@noises
def test_fresh_every_time_and_the_same_for_the_same_generator(build) -> None:
    noise = build()
    z, x = torch.zeros(16, E), torch.randn(16, H)
    torch.manual_seed(3)
    first, second = noise(z, x), noise(z, x)
    torch.manual_seed(3)
    assert torch.equal(noise(z, x), first)
    assert not torch.equal(first, second)


def test_a_checkpointed_forward_draws_the_same_noise_again() -> None:
    router = Router(
        LinearLogits(H, E),
        TopK(E, 2, softmax_after=True),
        noise=LearnedNoise(LinearLogits(H, E)),
        jitter=Jitter(0.1),
    )
    x = torch.randn(64, H, requires_grad=True)

    def gradients(forward) -> list[Tensor]:
        torch.manual_seed(1)
        weights = forward(x)
        loss = (weights * torch.linspace(-1, 1, weights.numel()).reshape(weights.shape)).sum()
        return list(torch.autograd.grad(loss, [x, *router.parameters()]))

    plain = gradients(lambda x: router(x).topk_weights)
    recomputed = gradients(lambda x: checkpoint(lambda x: router(x).topk_weights, x, use_reentrant=False))
    for a, b in zip(recomputed, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("noise", "mean", "std"),
    [
        (GaussianNoise(), 0, 1 / E),
        (GaussianNoise(0.5), 0, 0.5),
        (GumbelNoise(), 0.577216, math.pi / math.sqrt(6)),
        (GumbelNoise(2.0), 2 * 0.577216, 2 * math.pi / math.sqrt(6)),
        (LearnedNoise(LinearLogits(H, E, init_std=0.0)), 0, math.log(2)),
        (LearnedNoise(LinearLogits(H, E, init_std=0.0), min_std=0.3), 0, math.log(2) + 0.3),
    ],
    ids=str,
)
def test_moments(noise: nn.Module, mean: float, std: float) -> None:
    torch.manual_seed(0)
    sample = noise(torch.zeros(T, E), torch.randn(T, H)).detach()
    count = T * E
    assert abs(float(sample.mean()) - mean) < 4 * std / math.sqrt(count)
    assert abs(float(sample.std()) / std - 1) < 0.027


def test_the_deviation_is_learned() -> None:
    noise = LearnedNoise(LinearLogits(H, E)).double()
    x = torch.randn(5, H, dtype=torch.float64, requires_grad=True)
    z = torch.randn(5, E, dtype=torch.float64, requires_grad=True)
    sample = torch.randn(5, E, dtype=torch.float64)
    weight = noise.raw_std.weight
    assert torch.autograd.gradcheck(lambda z, x, _: noise(z, x, sample=sample), (z, x, weight))


def test_a_task_can_have_noise_of_its_own() -> None:
    router = Router(TaskLogits(H, E, 2), TopK(E, 2), noise=LearnedNoise(TaskLogits(H, E, 2)))
    task_ids = torch.tensor([0, 1, 1, 0])
    router(torch.randn(4, H), task_ids=task_ids).topk_weights[task_ids == 1].sum().backward()
    grad = router.noise.raw_std.weight.grad
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).any()


@noises
def test_float32_for_any_input_and_under_autocast(build) -> None:
    noise = build()
    z, x = torch.randn(16, E), torch.randn(16, H)
    torch.manual_seed(0)
    expected = noise(z, x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise(z, x), expected)
    assert noise(z.bfloat16(), x.bfloat16()).dtype == torch.float32
    assert noise.double()(z.double(), x.double()).dtype == torch.float64


@noises
def test_compiles_as_one_graph(build) -> None:
    noise = build()
    z, x = torch.randn(16, E), torch.randn(16, H)
    compiled = torch.compile(noise, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    actual = compiled(z, x)
    torch.manual_seed(0)
    torch.testing.assert_close(actual, noise(z, x))


# Jitter -----------------------------------------------------------------------------------------------------------


def test_jitter_stays_in_its_interval() -> None:
    jitter = Jitter(0.01)
    x = torch.randn(T, H)
    ratio = jitter(x) / x
    assert (ratio - 1).abs().max() <= 0.01 + 1e-6
    assert abs(float(ratio.mean()) - 1) < 2e-4
    assert float(ratio.std()) == pytest.approx(0.01 / math.sqrt(3), rel=0.013)
    assert jitter.eval()(x) is x
    assert Jitter(0.0)(x) is x


def test_jitter_scales_the_gradient_as_the_input() -> None:
    x = torch.randn(16, H, requires_grad=True)
    y = Jitter(0.1)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y)


def test_jitter_for_the_router_alone_is_not_rounded() -> None:
    x = torch.randn(16, H).bfloat16()
    assert Jitter()(x).dtype == torch.float32
    assert Jitter(scope="all")(x).dtype == torch.bfloat16


def test_errors() -> None:
    with pytest.raises(ValueError, match="eps must be at least 0"):
        Jitter(-1.0)
    with pytest.raises(ValueError, match="scope must be"):
        Jitter(scope="experts")
    with pytest.raises(ValueError, match="std must be at least 0"):
        GaussianNoise(-1.0)
    with pytest.raises(ValueError, match="scale must be at least 0"):
        GumbelNoise(-1.0)
    with pytest.raises(ValueError, match="min_std must be at least 0"):
        LearnedNoise(LinearLogits(H, E), min_std=-1.0)
