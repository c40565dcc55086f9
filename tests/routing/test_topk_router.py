"""The module around moe_ext.route: precision, options, state. The routing itself is tested with the op."""

import copy

import pytest
import torch

from moe_ext import reference
from moe_ext.routing import Jitter, TopKRouter

T, H, E, K = 64, 32, 16, 4

OPTIONS = {
    "softmax": {},
    "mixtral": {"renormalize": True, "eps": 0.0},
    "softmax_after": {"softmax_after": True},
    "deepseek_v2": {"num_groups": 4, "topk_groups": 2, "scale": 16.0},
    "deepseek_v3": {
        "score": "sigmoid",
        "num_groups": 4,
        "topk_groups": 2,
        "group_top": 2,
        "renormalize": True,
        "scale": 2.5,
        "expert_bias": True,
    },
    "sqrtsoftplus": {"score": "sqrtsoftplus", "renormalize": True},
    "none": {"score": "none", "bias": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_the_reference(options: dict[str, object]) -> None:
    router = TopKRouter(H, E, K, **options)
    if router.expert_bias is not None:
        router.expert_bias.uniform_(-0.2, 0.2)
    if router.bias is not None:
        torch.nn.init.normal_(router.bias)
    x = torch.randn(T, H)
    weights, ids, logits = router(x)
    torch.testing.assert_close(logits, x @ router.weight.T + (0 if router.bias is None else router.bias))
    arguments = {name: value for name, value in options.items() if name not in ("bias", "expert_bias")}
    expected_weights, expected_ids = reference.route(logits, K, bias=router.expert_bias, **arguments)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)


def test_bfloat16_input_gets_float32_routing() -> None:
    router = TopKRouter(H, 256, 8)
    x = torch.randn(512, H, dtype=torch.bfloat16)
    weights, ids, logits = router(x)
    assert weights.dtype == logits.dtype == torch.float32
    truth = x.double() @ router.weight.double().T
    assert torch.equal(ids.long(), truth.topk(8).indices)
    # In bfloat16 many of these would be other experts: the test would notice.
    assert not torch.equal((x @ router.weight.bfloat16().T).topk(8).indices, truth.topk(8).indices)


def test_autocast_does_not_reach_the_router() -> None:
    router = TopKRouter(H, E, K)
    x = torch.randn(T, H)
    expected = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = router(x)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half()])
def test_casting_the_model_leaves_the_router_in_float32(cast) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(H, H), TopKRouter(H, E, K, bias=True, expert_bias=True))
    model[1].expert_bias.uniform_(-1, 1)
    before = copy.deepcopy(model[1].state_dict())
    cast(model)
    assert model[0].weight.dtype != torch.float32
    for name, value in model[1].state_dict().items():
        assert value.dtype == torch.float32
        # Not rounded to the narrow type and back, either.
        assert torch.equal(value, before[name])


def test_float64() -> None:
    router = TopKRouter(H, E, K, expert_bias=True).double()
    assert router.weight.dtype == torch.float64
    weights, _, logits = router(torch.randn(T, H, dtype=torch.float64))
    assert weights.dtype == logits.dtype == torch.float64
    assert router.bfloat16().weight.dtype == torch.float32


def test_jitter_only_while_training() -> None:
    router = TopKRouter(H, E, K, jitter=0.01)
    x = torch.randn(T, H)
    clean = x @ router.weight.T
    noisy = router(x).router_logits
    assert not torch.allclose(noisy, clean)
    assert (noisy - clean).abs().max() <= 0.0101 * (x.abs() @ router.weight.abs().T).max()
    torch.testing.assert_close(router.eval()(x).router_logits, clean)


def test_expert_bias_is_a_buffer() -> None:
    router = TopKRouter(H, E, K, expert_bias=True)
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    assert list(router.state_dict()) == ["weight", "expert_bias"]
    router(torch.randn(T, H)).topk_weights.sum().backward()
    assert router.expert_bias.grad is None
    router.update_expert_bias(torch.arange(E))
    assert router.expert_bias.tolist() == pytest.approx([1e-3] * 8 + [-1e-3] * 8)
    with pytest.raises(RuntimeError, match="expert_bias=False"):
        TopKRouter(H, E, K).update_expert_bias(torch.arange(E))


def test_bias_changes_the_selection_and_not_the_weights() -> None:
    router = TopKRouter(H, E, K, score="sigmoid", expert_bias=True)
    x = torch.randn(T, H)
    router.expert_bias[5] = 10.0
    weights, ids, logits = router(x)
    assert (ids[:, 0] == 5).all()
    torch.testing.assert_close(weights, logits.sigmoid().gather(1, ids.long()))


def test_compiles_as_one_graph() -> None:
    router = TopKRouter(H, E, K, **OPTIONS["deepseek_v3"])
    x = torch.randn(T, H, requires_grad=True)
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), router(x), strict=True):
        torch.testing.assert_close(a, b)


def test_repr_and_errors() -> None:
    text = repr(TopKRouter(H, E, K, score="sigmoid", expert_bias=True))
    assert text == "TopKRouter(hidden_size=32, num_experts=16, top_k=4, score='sigmoid', expert_bias=True)"
    with pytest.raises(ValueError, match="top_k must be in 1"):
        TopKRouter(H, E, E + 1)


def test_jitter_is_drawn_again_as_it_was_and_is_that_of_the_module() -> None:
    router, x = TopKRouter(H, E, K, jitter=0.01), torch.randn(T, H)
    torch.manual_seed(1)
    logits = router(x).router_logits
    torch.manual_seed(1)
    torch.testing.assert_close(logits, Jitter(0.01)(x) @ router.weight.T)
