"""The named constructors: that each is the rule its paper states. Against public code: tests/integrations."""

import inspect
import math

import pytest
import torch
from torch import nn

from moe_ext.nn import Experts
from moe_ext.routing import Jitter, RouterOutput, published

T, H = 32, 24

# Smaller than what was published, where that matters for time.
ARGUMENTS = {
    "dense": (H, 6),
    "gshard": (H, 16),
    "hierarchical": (H, 4, 6),
    "mixture_of_attention_heads": (H, 8, 3),
    "mod_squad": (H, 8, 3, 4),
    "noisy_top_k": (H, 8),
    "random_moe": (8, 2),
}
names = pytest.mark.parametrize("name", published.__all__)


def build(name: str) -> nn.Module:
    return getattr(published, name)(*ARGUMENTS.get(name, (H,)))


def side(name: str) -> dict[str, torch.Tensor]:
    return {"task_ids": torch.arange(T) % 4} if name == "mod_squad" else {}


@names
def test_routes(name: str) -> None:
    router = build(name)
    x = torch.randn(T, H)
    for _ in range(2):
        output = router(x, **side(name))
        assert isinstance(output, RouterOutput)
        weights, ids, logits = output
        num_experts = logits.shape[1]
        assert weights.dtype == logits.dtype == torch.float32
        assert ids.dtype == torch.int32
        assert weights.shape == ids.shape
        used = ids >= 0
        assert (ids < num_experts).all()
        assert used[:, 0].all()
        assert (weights[~used] == 0).all()
        distinct = torch.nn.functional.one_hot(ids.clamp(min=0).long(), num_experts) * used[:, :, None]
        assert distinct.sum(1).max() == 1
        router.eval()
        # Once more without noise: now the same every time, but for those that are random by definition.
        if name not in ("random_moe", "mod_squad"):
            assert torch.equal(router(x, **side(name)).topk_ids, router(x, **side(name)).topk_ids)


@names
def test_every_parameter_gets_a_gradient(name: str) -> None:
    router = build(name)
    for parameter in router.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter)
    weights = router(torch.randn(T, H), **side(name)).topk_weights
    loss = (weights * torch.randn(weights.shape)).sum()
    for parameter, grad in zip(
        router.parameters(),
        torch.autograd.grad(loss, list(router.parameters())) if weights.requires_grad else (),
        strict=True,
    ):
        assert grad.shape == parameter.shape
        assert (grad != 0).any()


@pytest.mark.parametrize("name", sorted(set(published.__all__) - {"random_moe"}))
def test_permuting_tokens_permutes_the_output(name: str) -> None:
    router = build(name).eval()
    if name == "mod_squad":
        router.noise.at_eval = False
    x, order = torch.randn(T, H), torch.randperm(T)
    permuted = {key: value[order] for key, value in side(name).items()}
    actual, expected = router(x[order], **permuted), router(x, **side(name))
    assert torch.equal(actual.topk_ids, expected.topk_ids[order])
    # A row of a product may round otherwise in another place.
    torch.testing.assert_close(actual.topk_weights, expected.topk_weights[order])
    torch.testing.assert_close(actual.router_logits, expected.router_logits[order])


@names
def test_the_same_under_autocast_in_bfloat16_and_in_one_graph(name: str) -> None:
    router = build(name)
    x = torch.randn(T, H)

    def routed(call) -> RouterOutput:
        torch.manual_seed(1)
        return call(x, **side(name))

    expected = routed(router)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = routed(router)
    narrow = routed(router.to(torch.bfloat16))
    # All these share a forward, of which only so many graphs are kept.
    torch.compiler.reset()
    compiled = routed(torch.compile(router, fullgraph=True, backend="aot_eager"))
    for results in (autocast, narrow, compiled):
        for a, b in zip(results, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["gshard", "deepseek_v3", "hierarchical", "phimoe", "dense"])
def test_experts_take_what_a_router_gives(name: str) -> None:
    router = build(name)
    x = torch.randn(T, H)
    with torch.no_grad():
        weights, ids, logits = router(x)
        experts = Experts(H, 16, logits.shape[1])
        one = torch.ones(T, 1)
        expected = sum(
            weights[:, k, None] * experts(x, one, ids[:, k, None].contiguous()) for k in range(weights.shape[1])
        )
        torch.testing.assert_close(experts(x, weights, ids), expected)


@names
def test_constructors_take_a_device_and_are_documented(name: str) -> None:
    constructor = getattr(published, name)
    assert len(inspect.getdoc(constructor)) > 50
    if "device" in inspect.signature(constructor).parameters:
        meta = constructor(*ARGUMENTS.get(name, (H,)), device="meta")
        assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))


@pytest.mark.parametrize(
    ("name", "num_experts", "top_k"),
    [
        ("gshard", 2048, 2),
        ("glam", 64, 2),
        ("st_moe", 32, 2),
        ("v_moe", 32, 2),
        ("x_moe", 32, 1),
        ("mixtral", 8, 2),
        ("dbrx", 16, 4),
        ("qwen2_moe", 60, 4),
        ("qwen3_moe", 128, 8),
        ("deepseek_moe", 64, 6),
        ("deepseek_v2", 160, 6),
        ("deepseek_v3", 256, 8),
        ("llama4", 16, 1),
        ("gpt_oss", 128, 4),
        ("olmoe", 64, 8),
        ("glm4_moe", 160, 8),
    ],
)
def test_published_sizes(name: str, num_experts: int, top_k: int) -> None:
    output = getattr(published, name)(H).eval()(torch.randn(4, H))
    assert output.router_logits.shape == (4, num_experts)
    assert output.topk_ids.shape == (4, top_k)


def probabilities(router: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return router.eval()(x).router_logits.softmax(1)


def test_dense_weighs_all_experts_by_the_softmax() -> None:
    router, x = published.dense(H, 6), torch.randn(T, H)
    weights, ids, logits = router(x)
    torch.testing.assert_close(torch.zeros(T, 6).scatter(1, ids.long(), weights), logits.softmax(1))
    assert (published.dense(H, 1)(x).topk_weights == 1).all()


def test_noisy_top_k_starts_with_all_experts_equal_and_noise_of_ln_2() -> None:
    router, x = published.noisy_top_k(H, 8, 2), torch.randn(4096, H)
    weights, ids, logits = router(x)
    assert float(logits.detach().std()) == pytest.approx(math.log(2), rel=0.018)
    torch.testing.assert_close(weights, logits.gather(1, ids.long()).softmax(1))
    load = torch.bincount(ids.flatten().long(), minlength=8) / ids.numel()
    assert (load - 1 / 8).abs().max() < 0.016
    assert (router.eval()(x).router_logits == 0).all()
    at_eval = published.noisy_top_k(H, 8, 2, noise_at_eval=True, min_noise_std=1e-2).eval()
    assert float(at_eval(x).router_logits.detach().std()) == pytest.approx(math.log(2) + 1e-2, rel=0.018)


def test_switch_keeps_the_probability_of_its_one_expert() -> None:
    router, x = published.switch(H, 8), torch.randn(T, H)
    assert router.jitter.eps == 1e-2
    assert router.jitter.scope == "router"
    assert router.logits.weight.abs().max() <= 2 * math.sqrt(0.1 / H)
    assert not torch.equal(router(x).router_logits, router(x).router_logits)
    p = probabilities(router, x)
    weights, ids, _ = router(x)
    torch.testing.assert_close(weights[:, 0], p.max(1).values)
    assert torch.equal(ids[:, 0].long(), p.argmax(1))


def test_gshard_normalises_the_pair_and_sometimes_drops_the_second() -> None:
    router, x = published.gshard(H, 8), torch.randn(512, H)
    _, ids, logits = router(x)
    p = logits.softmax(1).topk(2).values
    weights = router.eval()(x).topk_weights
    torch.testing.assert_close(weights, p / p.sum(1, keepdim=True))
    assert 0 < int((ids[:, 1] < 0).sum()) < 512
    # ST-MoE keeps more of them.
    sharp = 3 * logits
    kept = [int((getattr(published, name)(H, 8).selection(sharp)[1] >= 0).sum()) for name in ("gshard", "st_moe")]
    assert 512 < kept[0] < kept[1] < 1024
    assert published.st_moe(H).selection.threshold == 0.2
    after = published.gshard(H, 8, second_expert="sample", renormalize=False).eval()
    probability = after(x).router_logits.softmax(1)
    torch.testing.assert_close(after(x).topk_weights, probability.topk(2).values)


def test_v_moe_adds_noise_of_one_over_e_and_does_not_renormalise() -> None:
    router, x = published.v_moe(H, 16), torch.randn(2048, H)
    weights, ids, logits = router(x)
    assert float((logits - router.logits(x)).detach().std()) == pytest.approx(1 / 16, rel=0.018)
    torch.testing.assert_close(weights, logits.softmax(1).gather(1, ids.long()))


def test_x_moe_weighs_by_softmax_or_by_sigmoid() -> None:
    x = torch.randn(T, H)
    router = published.x_moe(H, 8)
    assert router.logits.projection.shape == (4, H)
    assert router.logits.temperature.item() == pytest.approx(0.3)
    weights, _, logits = router(x)
    torch.testing.assert_close(weights[:, 0], logits.softmax(1).max(1).values)
    router = published.x_moe(H, 8, score="sigmoid")
    assert router.logits.temperature.item() == pytest.approx(0.07)
    weights, ids, logits = router(x)
    torch.testing.assert_close(weights[:, 0], logits.max(1).values.sigmoid())
    assert torch.equal(ids[:, 0].long(), logits.argmax(1))
    released = published.x_moe(H, 8, released=True)
    assert released.logits.projection.shape == (16, H)
    assert released.logits.temperature is None
    assert released.selection.nonfinite == "min"


@pytest.mark.parametrize("name", ["mixtral", "minimax", "dbrx"])
def test_public_code_lets_experts_see_the_jitter(name: str) -> None:
    x = torch.randn(T, H)
    router = getattr(published, name)(H, jitter=0.1)
    assert not torch.equal(router.jitter_input(x), x)
    router = getattr(published, name)(H, jitter=0.1, jitter_scope="router")
    assert router.jitter_input(x) is x
    assert isinstance(router.jitter, Jitter)
    assert getattr(published, name)(H).jitter is None


@pytest.mark.parametrize("p", [1, 2, None])
def test_dbrx_divides_by_the_p_norm(p: float | None) -> None:
    weights, ids, logits = published.dbrx(H, p=p)(torch.randn(T, H))
    chosen = logits.softmax(1).gather(1, ids.long())
    torch.testing.assert_close(weights, chosen if p is None else chosen / chosen.norm(p=p, dim=1, keepdim=True))


def test_deepseek_v2_scales_or_renormalises() -> None:
    x = torch.randn(T, H)
    weights, ids, logits = published.deepseek_v2(H)(x)
    torch.testing.assert_close(weights, 16 * logits.softmax(1).gather(1, ids.long()))
    # No token uses more than three of the eight groups.
    assert max(len(set(row)) for row in (ids // 20).tolist()) <= 3
    renormalised = published.deepseek_v2(H, renormalize=True)(x).topk_weights
    torch.testing.assert_close(renormalised.sum(1), torch.ones(T))
    both = published.deepseek_v2(H, renormalize=True, scale_renormalized=True)(x).topk_weights
    torch.testing.assert_close(both.sum(1), torch.full((T,), 16.0))
    one = published.deepseek_v2(H, top_k=1, renormalize=True, scale_renormalized=True)(x)
    torch.testing.assert_close(one.topk_weights, 16 * one.router_logits.softmax(1).gather(1, one.topk_ids.long()))


def test_deepseek_v3_and_its_options() -> None:
    x = torch.randn(T, H)
    router = published.deepseek_v3(H)
    weights, ids, logits = router(x)
    chosen = logits.sigmoid().gather(1, ids.long())
    torch.testing.assert_close(weights, 2.5 * chosen / chosen.sum(1, keepdim=True))
    assert max(len(set(row)) for row in (ids // 32).tolist()) <= 4
    assert router.expert_bias.shape == (256,)
    softmax = published.deepseek_v3(H, score="softmax")(x)
    expected = 2.5 * softmax.router_logits.softmax(1).gather(1, softmax.topk_ids.long())
    torch.testing.assert_close(softmax.topk_weights, expected)
    plain = published.deepseek_v3(H, expert_bias=False)
    assert plain.expert_bias is None
    assert plain.selection.options["group_top"] == 1
    assert published.deepseek_v3(H, group_fill="0").selection.options["group_fill"] == "0"


def test_llama4_ranks_logits_that_a_sigmoid_would_tie() -> None:
    router = published.llama4(2, 2)
    with torch.no_grad():
        router.logits.weight.copy_(torch.tensor([[30.0, 0], [40.0, 0]]))
    weights, ids, _ = router(torch.ones(1, 2))
    assert ids.tolist() == [[1]]
    assert weights.tolist() == [[1]]


def test_mixture_of_attention_heads_detaches_its_sum() -> None:
    x = torch.randn(T, H)
    router = published.mixture_of_attention_heads(H, 8, 3)
    torch.testing.assert_close(router(x).topk_weights.sum(1), torch.ones(T))
    # Normalised, and yet the unchosen logits have a gradient.
    z = torch.randn(1, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(router.selection(z).topk_weights[0, 0], z)
    assert (grad != 0).all()
    released = published.mixture_of_attention_heads(H, 8, 3, normalize=False)(x)
    chosen = released.router_logits.softmax(1).gather(1, released.topk_ids.long())
    torch.testing.assert_close(released.topk_weights, chosen)


def test_mod_squad_has_a_gate_per_task_and_a_floor() -> None:
    router = published.mod_squad(H, 8, 3, 4, noise_at_eval=False).eval()
    nn.init.normal_(router.logits.weight)
    x, task_ids = torch.randn(T, H), torch.arange(T) % 4
    weights, ids, logits = router(x, task_ids=task_ids)
    torch.testing.assert_close(logits, torch.einsum("th,teh->te", x, router.logits.weight[task_ids]))
    torch.testing.assert_close(weights, logits.softmax(1).gather(1, ids.long()) + 1e-4)


def test_random_moe_is_balanced_with_equal_weights() -> None:
    router = published.random_moe(8, 2).eval()
    weights, ids, _ = router(torch.randn(4096, H))
    assert (weights - 1 / 8).abs().max() < 1e-3
    load = torch.bincount(ids.flatten().long(), minlength=8) / ids.numel()
    assert (load - 1 / 8).abs().max() < 0.016
