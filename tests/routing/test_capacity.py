"""The stage between router and experts."""

import pytest
import torch
from torch import Tensor, nn

import moe_ext
from moe_ext.ops.types import Routing
from moe_ext.routing import Capacity, LinearLogits, Router, RouterOutput, TopK, expert_capacity, limit_capacity
from tests.routing.capacity_cases import LOGITS, counts_of, top2

T, H, E, K = 64, 16, 8, 2

MODELS = {
    "switch": {"rule": "switch", "factor": 1.25, "eval_factor": 2.0, "order": "token"},
    "gshard": {"rule": "gshard", "group_size": 16, "second_threshold": 0.5},
    "vmoe": {"rule": "vmoe", "order": "priority", "token_priority": "sum"},
    "deepspeed": {"rule": "deepspeed", "order": "random", "renormalize": True},
    "megatron": {"order": "score"},
    "tutel": {"rule": "dynamic", "factor": -1.0},
    "rerouted": {"rule": "megatron", "reroute_iterations": 2},
}


def routed(seed: int = 0) -> RouterOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator) + torch.linspace(2, 0, E)
    return RouterOutput(*moe_ext.route(logits, K), logits)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_no_expert_gets_more_than_its_capacity(options: dict[str, object]) -> None:
    stage, given = Capacity(E, **options), routed()
    limited = stage(given)
    assert isinstance(limited, Routing)
    size = stage.group_size or T
    for begin in range(0, T, size):
        counts = counts_of(limited.topk_ids[begin : begin + size], E)
        assert max(counts) <= int(stage.capacity(given.topk_ids))
    assert bool((limited.topk_ids < 0).any())
    assert bool((limited.topk_weights[limited.topk_ids < 0] == 0).all())


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_compiles(options: dict[str, object]) -> None:
    stage, given = Capacity(E, **options), routed()
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = stage(given, router_logits=given.router_logits)
    torch.manual_seed(0)
    actual = compiled(given, router_logits=given.router_logits)
    assert torch.equal(actual.topk_ids, expected.topk_ids)
    torch.testing.assert_close(actual.topk_weights, expected.topk_weights)


def test_compiles_once_for_any_number_of_tokens() -> None:
    torch.compiler.reset()  # other tests have compiled the same code
    stage, graphs = Capacity(E, rule="switch", order="token"), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(stage, fullgraph=True, backend=backend, dynamic=True)
    for num_tokens in (64, 40, 17):
        given = Routing(*(t[:num_tokens].clone() for t in routed()[:2]))
        assert torch.equal(compiled(given).topk_ids, stage(given).topk_ids)
    assert len(graphs) == 1


def test_training_and_evaluation_have_factors_of_their_own() -> None:
    stage = Capacity(E, rule="switch", factor=1.0, eval_factor=2.0)
    ids = routed().topk_ids
    assert stage.capacity(ids) == 8
    assert stage.eval().capacity(ids) == 16
    assert stage.capacity(ids, training=True) == 8
    assert torch.equal(stage(routed(), training=True).topk_ids, limit_capacity(routed(), E, 8).topk_ids)


def test_the_capacity_of_a_group_follows_its_size() -> None:
    assert Capacity(E, rule="gshard", group_size=16).capacity(routed().topk_ids) == expert_capacity(
        16, E, K, rule="gshard"
    )


def test_dropping_can_be_for_training_only() -> None:
    stage = Capacity(E, drop_at_eval=False).eval()
    assert torch.equal(stage(routed()).topk_ids, routed().topk_ids)


def test_the_second_expert_is_certain_outside_of_training() -> None:
    stage = Capacity(4, rule="dynamic", second_threshold=0.5).eval()
    assert torch.equal(stage(top2()).topk_ids, top2().topk_ids)
    stage.train()
    torch.manual_seed(0)
    assert not all(torch.equal(stage(top2()).topk_ids, top2().topk_ids) for _ in range(10))


def test_rerouting_takes_the_logits_of_a_router_output() -> None:
    stage = Capacity(E, reroute_iterations=2)
    given = routed()
    plain, rerouted = Capacity(E)(given), stage(given)
    assert int((rerouted.topk_ids < 0).sum()) < int((plain.topk_ids < 0).sum())
    with pytest.raises(ValueError, match="rerouting needs router_logits, got None"):
        stage(Routing(*given[:2]))


def test_a_checkpoint_recomputes_the_same_dropping() -> None:
    """Random dropping between a router and experts: the recomputed forward must drop the same slots."""
    torch.manual_seed(0)
    router = Router(LinearLogits(H, E), TopK(E, K))
    stage = Capacity(E, factor=0.5, order="random", second_threshold=0.5)
    w_gate_up, w_down = torch.randn(E, 2 * H, H), torch.randn(E, H, H)
    seen: list[Tensor] = []

    def layer(x: Tensor) -> Tensor:
        routing = stage(router(x))
        seen.append(routing.topk_ids)
        return moe_ext.fused_experts(x, w_gate_up, w_down, *routing)

    x = torch.randn(T, H, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    y.sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_experts_serve_what_is_left() -> None:
    """A token without a slot gets zeros; the others are a loop over their experts."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, H, generator=generator, dtype=torch.float64)
    w_gate_up = torch.randn(4, 2 * H, H, generator=generator, dtype=torch.float64)
    w_down = torch.randn(4, H, H, generator=generator, dtype=torch.float64)
    limited = Capacity(4, rule="switch", factor=1.5)(top2())
    y = moe_ext.fused_experts(x, w_gate_up, w_down, *limited)
    expected = torch.zeros_like(x)
    for t, k in (limited.topk_ids >= 0).nonzero().tolist():
        e = int(limited.topk_ids[t, k])
        gate, up = (w_gate_up[e] @ x[t]).chunk(2)
        expected[t] += limited.topk_weights[t, k] * (w_down[e] @ (nn.functional.silu(gate) * up))
    torch.testing.assert_close(y, expected)
    assert y[5].abs().sum() == 0


def test_scores_of_rerouting() -> None:
    given = Routing(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int32))
    for score, of in (("softmax", lambda z: torch.softmax(z, 1)), ("sigmoid", torch.sigmoid), ("none", lambda z: z)):
        stage = Capacity(4, rule="switch", factor=1.0, reroute_iterations=1, score=score)
        weights, ids = stage(given, router_logits=LOGITS[:2].float())
        assert ids.tolist() == [[0], [1]]
        torch.testing.assert_close(weights[1], of(LOGITS[:2].float())[1, 1:2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": "best"}, ValueError, "rule must be one of"),
        ({"order": "fifo"}, ValueError, "order must be one of"),
        ({"factor": -1.0}, ValueError, "factor must be at least 0.0"),
        ({"eval_factor": -1.0}, ValueError, "eval_factor must be at least 0.0"),
        ({"rule": "dynamic", "factor": float("nan")}, ValueError, "factor must be finite"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1"),
        ({"second_threshold": 0}, ValueError, "second_threshold must be greater than 0"),
        ({"reroute_iterations": -1}, ValueError, "reroute_iterations must be at least 0"),
        ({"token_priority": "mean"}, ValueError, "token_priority must be one of"),
        ({"rule": "dynamic", "minimum": 3}, ValueError, "minimum must be None with"),
        ({"process_group": object()}, ValueError, "process_group needs"),
        ({"score": "relu"}, ValueError, "score must be one of"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Capacity(4, **options)  # type: ignore[arg-type]
