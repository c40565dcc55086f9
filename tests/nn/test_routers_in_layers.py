"""`MoE` around any router and any capacity stage: what they choose is what the experts do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_ext import reference
from moe_ext.losses import load_balancing_loss
from moe_ext.nn import MoE, update_expert_biases
from moe_ext.ops.types import Routing
from moe_ext.routing import (
    Capacity,
    DenseToSparseSelection,
    DeviceCapacity,
    ExpertChoice,
    ExpertChoiceCapped,
    HashSelection,
    Jitter,
    LinearLogits,
    MultiplicativeBias,
    NormalizeWeights,
    ReLUSelection,
    Reweigh,
    Router,
    SequenceRouter,
    Sinkhorn,
    SoftTopK,
    ThresholdSelection,
    TopK,
    TopP,
    balanced_table,
    published,
)
from moe_ext.routing.fixed_logits import ConstantLogits

T, H, INTERMEDIATE, E, K = 24, 12, 8, 8, 2

ROUTERS = {
    "dense": lambda: published.dense(H, E),
    "gshard": lambda: published.gshard(H, E),
    "switch": lambda: published.switch(H, E),
    "mixtral": lambda: published.mixtral(H, E, K),
    "deepseek_v3": lambda: published.deepseek_v3(H, E, K, num_groups=4, topk_groups=2),
    "x_moe": lambda: published.x_moe(H, E),
    "hierarchical": lambda: published.hierarchical(H, 4, 2),
    "expert_choice": lambda: Router(LinearLogits(H, E), ExpertChoice(E)),
    "expert_choice_of_sequences": lambda: Router(LinearLogits(H, E), ExpertChoice(E, group_size=6)),
    "expert_choice_capped": lambda: Router(LinearLogits(H, E), ExpertChoiceCapped(E, max_experts_per_token=3)),
    "sinkhorn": lambda: Router(LinearLogits(H, E), Sinkhorn(E)),
    "top_p": lambda: Router(LinearLogits(H, E), TopP(E, 0.4)),
    "relu": lambda: Router(LinearLogits(H, E), ReLUSelection(E)),
}


def expected(layer: MoE, x: Tensor, routing: Routing) -> Tensor:
    experts = layer.experts
    return reference.fused_experts(
        x, experts.w_gate_up, experts.w_down, routing.topk_weights.to(x.dtype), routing.topk_ids
    )


@pytest.mark.parametrize("name", ROUTERS)
def test_the_layer_does_what_the_router_says(name: str) -> None:
    torch.manual_seed(0)
    layer = MoE(H, INTERMEDIATE, E, K, router=ROUTERS[name]()).double().eval()
    x = torch.randn(4, 6, H, dtype=torch.float64)
    out = layer(x, return_metrics=True)
    routed = layer.router(x.view(T, H))
    torch.testing.assert_close(out.y.view(T, H), expected(layer, x.view(T, H), Routing(*routed[:2])))
    assert out.metrics.counts.sum() == (routed.topk_ids >= 0).sum()
    layer.train()
    layer(x).square().sum().backward()
    for parameter in layer.experts.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ["gshard", "expert_choice", "top_p"])
def test_one_graph(name: str) -> None:
    torch.manual_seed(0)
    layer = MoE(H, INTERMEDIATE, E, K, router=ROUTERS[name](), capacity=Capacity(E, factor=0.75)).eval()
    x = torch.randn(T, H)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_buffers_have_no_more_rows_than_expert_choice_fills() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, router=Router(LinearLogits(H, E), ExpertChoice(E, capacity_factor=2)))
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        layer(torch.randn(T, H))
    assert (2 * T, 2 * INTERMEDIATE) in saved
    assert (E * T, 2 * INTERMEDIATE) not in saved


@pytest.mark.parametrize(
    "capacity", [Capacity(E, rule="switch", factor=0.5), DeviceCapacity(E, num_devices=2)], ids=["expert", "device"]
)
def test_capacity_stands_between_router_and_experts(capacity: nn.Module) -> None:
    torch.manual_seed(1)
    layer = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.01, capacity=capacity).double()
    free = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.01).double()
    free.load_state_dict(layer.state_dict())
    with torch.no_grad():
        layer.router.weight[0] += 3 * layer.router.weight[1]
        free.router.weight.copy_(layer.router.weight)
    x = torch.randn(T, H, dtype=torch.float64)
    out, of_free = (module(x, return_losses=True, return_metrics=True) for module in (layer, free))
    assert out.metrics.dropped_slots > 0
    assert of_free.metrics.dropped_slots == 0
    # The loss sees the choices from before.
    assert torch.equal(out.losses.total, of_free.losses.total)
    routed = layer.router(x)
    kept = capacity(Routing(*routed[:2]), router_logits=routed.router_logits)
    torch.testing.assert_close(out.y, expected(layer, x, kept))


def test_entropies_are_those_of_the_router_whatever_a_capacity_drops() -> None:
    torch.manual_seed(0)
    layer = MoE(H, INTERMEDIATE, E, K).eval()
    x = torch.randn(T, H)
    before = layer(x, return_metrics=True).metrics
    layer.capacity = Capacity(E, rule="switch", factor=0.2)
    after = layer(x, return_metrics=True).metrics
    assert after.dropped_tokens > 0.2
    assert torch.equal(after.router_entropy, before.router_entropy)
    assert torch.equal(after.mean_probability_entropy, before.mean_probability_entropy)


def test_a_capacity_knows_the_sequences() -> None:
    seen: list[int] = []

    class Spy(DeviceCapacity):
        def forward(self, routing: Routing, *, num_sequences: int = 1, **options: Any) -> Routing:
            seen.append(num_sequences)
            return super().forward(routing, num_sequences=num_sequences, **options)

    layer = MoE(H, INTERMEDIATE, E, K, capacity=Spy(E, num_devices=2))
    layer(torch.randn(4, 6, H)), layer(torch.randn(T, H))
    layer.router = ROUTERS["expert_choice"]()
    layer(torch.randn(T, H), num_sequences=3)
    assert seen == [4, 1, 3]


def test_side_inputs_reach_the_router() -> None:
    table = balanced_table(torch.arange(20, 0, -1), E)
    layer = MoE(H, INTERMEDIATE, E, 1, router=Router(ConstantLogits(E), HashSelection(table, E)))
    tokens = torch.randint(20, (4, 6))
    out = layer(torch.randn(4, 6, H), token_ids=tokens, return_metrics=True)
    assert torch.equal(out.metrics.counts, torch.bincount(table[tokens].flatten().long(), minlength=E))
    layer = MoE(H, INTERMEDIATE, E, K, router=ROUTERS["expert_choice"]())
    out = layer(torch.randn(4, 6, H), num_sequences=4, return_metrics=True)
    assert out.metrics.counts.tolist() == [4] * E


def test_masked_tokens_reach_nobody() -> None:
    mask = torch.rand(4, 6) > 0.3
    layer = MoE(H, INTERMEDIATE, E, K, router=ROUTERS["expert_choice"]())
    y = layer(torch.randn(4, 6, H), token_mask=mask)
    assert (y[~mask] == 0).all()


def test_jitter_of_all_reaches_the_experts() -> None:
    router = Router(LinearLogits(H, E), TopK(E, E), jitter=Jitter(0.3, scope="all"))
    layer = MoE(H, INTERMEDIATE, E, E, router=router)
    x = torch.randn(T, H)
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    jittered = router.jitter(x)
    torch.testing.assert_close(y, layer.eval()(jittered))
    assert not torch.allclose(y, layer(x))


def test_bias_of_a_router() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, router=ROUTERS["deepseek_v3"](), aux_loss_free=True)
    layer(torch.randn(T, H))
    counts = layer.expert_counts.clone()
    update_expert_biases(layer, rate=0.5)
    assert torch.equal(layer.router.expert_bias, 0.5 * (counts.float().mean() - counts).sign())
    with pytest.raises(ValueError, match="expert_bias"):
        MoE(H, INTERMEDIATE, E, K, router=ROUTERS["mixtral"](), aux_loss_free=True)


@pytest.mark.parametrize("options", [{}, {"score": "sigmoid"}, {"load_balancing_convention": "per_token"}], ids=str)
def test_losses_from_sums_are_the_losses_from_logits(options: dict[str, Any]) -> None:
    """Without a mask the router forms the sums that the losses need; a mask of all tokens goes the long way."""
    torch.manual_seed(0)
    layer = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.3, z_loss_coef=0.2, **options).double()
    x = torch.randn(T, H, dtype=torch.float64)
    gradients = []
    for mask in (None, torch.ones(T, dtype=torch.bool)):
        losses = layer(x, return_losses=True, token_mask=mask).losses
        gradients.append((losses, *torch.autograd.grad(losses.total, layer.router.weight)))
    for by_sums, by_logits in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(by_sums, by_logits)


def test_losses_go_by_the_scores_of_the_router() -> None:
    torch.manual_seed(0)
    router = published.deepseek_v3(H, E, K, num_groups=4, topk_groups=2)
    layer = MoE(H, INTERMEDIATE, E, K, router=router, load_balancing_coef=1.0).double()
    x = torch.randn(T, H, dtype=torch.float64)
    _, ids, logits = router(x)
    expected = load_balancing_loss(logits, ids, score="sigmoid")
    torch.testing.assert_close(layer(x, return_losses=True).losses.load_balancing, expected)


WRAPPED = {
    "normalised": lambda: Router(LinearLogits(H, E), NormalizeWeights(TopK(E, K, score="sigmoid", nonfinite="min"))),
    "of_sequences": lambda: SequenceRouter(Router(LinearLogits(H, E), TopK(E, K, score="sigmoid", nonfinite="min"))),
    "multiplied": lambda: Router(
        LinearLogits(H, E), MultiplicativeBias(TopK(E, K, score="none", nonfinite="min"), E, score="sigmoid")
    ),
}


BUFFERS = {
    "bias": lambda: TopK(E, K, expert_bias=True),
    "multiplied": lambda: MultiplicativeBias(TopK(E, K, score="none"), E),
    "threshold": lambda: ThresholdSelection(E, initial_bias=-0.5),
    "soft": lambda: SoftTopK(E, K, temperature=0.5),
    "dense_to_sparse": lambda: DenseToSparseSelection(E, threshold=0.1, temperature=1.5),
    "expert_choice": lambda: ExpertChoice(E, inference="threshold"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_begin_anew_after_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        layer = MoE(H, INTERMEDIATE, E, K, router=Router(LinearLogits(H, E), BUFFERS[name]()))
    layer.to_empty(device="cpu")
    for buffer in layer.buffers():
        buffer.fill_(77)
    layer.reset_parameters()
    expected = dict(BUFFERS[name]().named_buffers())
    assert expected
    for key, buffer in layer.router.selection.named_buffers():
        assert torch.equal(buffer, expected[key])


def test_top_p_says_how_it_scores() -> None:
    router = Router(LinearLogits(H, E), TopP(E, 1.0, score="sigmoid", nonfinite="sanitize"))
    assert (router.score, router.nonfinite) == ("sigmoid", "sanitize")


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_says_what_the_selection_inside_says(name: str) -> None:
    router = WRAPPED[name]()
    assert router.score == "sigmoid"
    assert router.nonfinite == "min"


def test_a_wrapper_passes_on_the_bound_of_the_rows() -> None:
    choice = ExpertChoice(E, capacity_factor=2)
    assert Router(LinearLogits(H, E), NormalizeWeights(choice)).max_rows(T) == choice.max_rows(T)
    assert Router(LinearLogits(H, E), NormalizeWeights(TopK(E, K))).max_rows(T) is None


def test_logits_that_a_selection_replaces_enter_no_loss() -> None:
    router = Router(LinearLogits(H, E), Reweigh(TopK(E, K, nonfinite="min"), "softmax"))
    layer = MoE(H, INTERMEDIATE, E, K, router=router, load_balancing_coef=1.0, z_loss_coef=1.0)
    x = torch.randn(T, H)
    expected = layer(x[1:], return_losses=True).losses
    x[0] = float("nan")
    for loss, of_the_others in zip(layer(x, return_losses=True).losses, expected, strict=True):
        torch.testing.assert_close(loss, of_the_others)


def test_padding_is_no_part_of_the_mean_of_its_sequence() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, router=SequenceRouter(ROUTERS["mixtral"]())).eval()
    x, mask = torch.randn(4, 6, H), torch.arange(6).expand(4, 6) < 4
    y = layer(x, token_mask=mask, num_sequences=4)
    torch.testing.assert_close(y[:, :4], layer(x[:, :4].contiguous(), num_sequences=4))
    assert (y[:, 4:] == 0).all()


def test_a_router_that_takes_no_side_inputs_says_so() -> None:
    layer = MoE(H, INTERMEDIATE, E, K, load_balancing_coef=0.1)
    with pytest.raises(TypeError, match="token_ids"):
        layer(torch.randn(T, H), token_ids=torch.zeros(T, dtype=torch.int64))
