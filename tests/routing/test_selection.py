"""Selections against numbers worked out by hand, and the rules of their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_ext.ops.types import Routing
from moe_ext.routing import MultiplicativeBias, NormalizeWeights, Reweigh, Top2, TopK, update_expert_bias
from tests.losses.worked_example import TOP_2, logits

PROBABILITIES = [
    [0.643914, 0.236883],
    [0.643914, 0.236883],
    [0.682791, 0.152351],
    [0.757313, 0.102491],
    [0.610296, 0.224515],
    [0.643914, 0.236883],
]
RENORMALIZED = [
    [0.731059, 0.268941],
    [0.731059, 0.268941],
    [0.817574, 0.182426],
    [0.880797, 0.119203],
    [0.731059, 0.268941],
    [0.731059, 0.268941],
]
GROUP_SCORES = [[0.9, 0.1, 0.6, 0.55, 0.2, 0.3, 0.05, 0.04]]
GATE_LOGITS = [[1, 0.5, -1, 2, 0, 0.2, -0.5, 1.5]]
GATE_BIAS = [0, 0.1, 0.3, -0.4, 0, 0, 0.2, -0.1]


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(
        actual.detach().double(), torch.as_tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )


def jacobian(selection: nn.Module, z: Tensor) -> Tensor:
    """[K, E]: how the weights of a single token depend on its logits."""
    return torch.autograd.functional.jacobian(lambda z: selection(z[None]).topk_weights[0], z)


def v3_gate() -> TopK:
    gate = TopK(
        8, 3, score="sigmoid", num_groups=4, topk_groups=2, group_top=2, renormalize=True, scale=2.5, expert_bias=True
    )
    gate.expert_bias.copy_(torch.tensor(GATE_BIAS))
    return gate


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (TopK(4, 2), PROBABILITIES),
        (TopK(4, 2, renormalize=True), RENORMALIZED),
        (TopK(4, 2, softmax_after=True), RENORMALIZED),
        (NormalizeWeights(TopK(4, 2)), RENORMALIZED),
        (NormalizeWeights(TopK(4, 2), detach=True), RENORMALIZED),
        (Reweigh(TopK(4, 2, score="sigmoid"), "softmax", renormalize=True), RENORMALIZED),
        (Reweigh(TopK(4, 2, score="none"), "softmax_after"), RENORMALIZED),
        (Top2(4), RENORMALIZED),
        (Top2(4, renormalize=False), PROBABILITIES),
    ],
    ids=str,
)
def test_top_2_of_the_worked_example(selection: nn.Module, expected: list[list[float]]) -> None:
    weights, ids = selection(logits())
    assert ids.tolist() == TOP_2
    assert ids.dtype == torch.int32
    close(weights, expected)


def test_p_norms() -> None:
    first = logits()[:1]
    close(NormalizeWeights(TopK(4, 2), p=1)(first).topk_weights, [[0.731059, 0.268941]])
    close(NormalizeWeights(TopK(4, 2), p=2)(first).topk_weights, [[0.938508, 0.345258]])
    close(NormalizeWeights(TopK(4, 2), p=None)(first).topk_weights, [[0.643914, 0.236883]])
    close(NormalizeWeights(TopK(4, 2), p=None, floor=1e-4)(first).topk_weights, [[0.644014, 0.236983]])


def test_scale_is_on_top_or_instead() -> None:
    first = logits()[:1]
    close(TopK(4, 2, scale=16.0)(first).topk_weights, [[10.302628, 3.790125]])
    scaled = torch.tensor(RENORMALIZED[:1]) * 16
    torch.testing.assert_close(TopK(4, 2, renormalize=True, scale=16.0)(first.float()).topk_weights, scaled)
    either_or = TopK(4, 2, renormalize=True, scale=16.0, scale_renormalized=False)
    close(either_or(first).topk_weights, RENORMALIZED[:1])


def test_groups_by_their_best_or_their_best_two() -> None:
    scores = torch.tensor(GROUP_SCORES)
    groups = {"score": "none", "num_groups": 4, "topk_groups": 1}
    assert TopK(8, 2, **groups)(scores).topk_ids.tolist() == [[0, 1]]
    assert TopK(8, 2, group_top=2, **groups)(scores).topk_ids.tolist() == [[2, 3]]


def test_a_fill_of_zero_lets_rejected_groups_win() -> None:
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.1, 0.45, 0.44, 0.43, 0.42]])
    for fill, expected in (("-inf", [[0, 1]]), ("0", [[4, 5]])):
        selection = TopK(
            8, 2, score="none", num_groups=2, topk_groups=1, group_top=2, group_fill=fill, expert_bias=True
        )
        selection.expert_bias.copy_(torch.tensor([-0.4] * 4 + [-0.6] * 4))
        assert selection(scores).topk_ids.tolist() == expected


def test_keeping_all_groups_is_plain_top_k() -> None:
    z = torch.randn(32, 8)
    for a, b in zip(TopK(8, 3, num_groups=4, topk_groups=4)(z), TopK(8, 3)(z), strict=True):
        assert torch.equal(a, b)


def test_gate_of_deepseek_v3() -> None:
    gate = v3_gate()
    weights, ids = gate(torch.tensor(GATE_LOGITS, dtype=torch.float64))
    assert ids.tolist() == [[0, 1, 7]]
    close(weights, [[0.841810, 0.716758, 0.941432]])
    expected = torch.zeros(3, 8, dtype=torch.float64)
    expected[:, [0, 1, 7]] = torch.tensor(
        [
            [0.150164, -0.091119, -0.057829],
            [-0.064909, 0.193022, -0.049239],
            [-0.085255, -0.101903, 0.107068],
        ],
        dtype=torch.float64,
    )
    actual = jacobian(gate, torch.tensor(GATE_LOGITS[0], dtype=torch.float64))
    close(actual, expected)
    close(actual.sum(0), torch.zeros(8))


def test_a_group_of_one_expert_counts_that_one() -> None:
    z = torch.randn(16, 4)
    assert torch.equal(
        TopK(4, 2, score="sigmoid", num_groups=4, topk_groups=2, group_top=2)(z).topk_ids,
        TopK(4, 2, score="sigmoid")(z).topk_ids,
    )


# Gradients --------------------------------------------------------------------------------------------------------


def test_softmax_weights_reach_every_logit() -> None:
    z = logits()[0]
    p = z.softmax(0)
    expected = p[:2, None] * (torch.eye(4, dtype=torch.float64)[:2] - p)
    close(jacobian(TopK(4, 2), z), expected)
    close(jacobian(TopK(4, 1), z), expected[:1])


@pytest.mark.parametrize(
    "selection", [TopK(4, 2, renormalize=True), TopK(4, 2, softmax_after=True), NormalizeWeights(TopK(4, 2)), Top2(4)]
)
def test_renormalised_weights_reach_the_chosen_logits_only(selection: nn.Module) -> None:
    close(jacobian(selection, logits()[0])[0], [0.196612, -0.196612, 0, 0])


def test_one_renormalised_expert_has_no_gradient() -> None:
    close(jacobian(TopK(4, 1, renormalize=True), logits()[0]), torch.zeros(1, 4))


def test_a_detached_sum_lets_every_logit_have_its_gradient() -> None:
    selection = NormalizeWeights(TopK(4, 2), detach=True)
    close(jacobian(selection, logits()[0])[0], [0.260320, -0.173175, -0.063708, -0.023437])


def test_gradient_of_the_2_norm() -> None:
    p = torch.tensor([0.643914, 0.236883], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1]], dtype=torch.int32)

    class Given(nn.Module):
        def forward(self, router_logits: Tensor, **_: object) -> Routing:
            return Routing(router_logits, ids)

    actual = jacobian(NormalizeWeights(Given(), p=2), p)
    w = p / p.norm()
    close(actual, (torch.eye(2) - w[:, None] * w) / p.norm())


SELECTIONS = {
    "top_k": TopK(6, 3),
    "v2_groups": TopK(6, 2, num_groups=3, topk_groups=2, scale=16.0),
    "2-norm": NormalizeWeights(TopK(6, 3), p=2.0, scale=0.5),
    "3-norm": NormalizeWeights(TopK(6, 3), p=3.0, eps=0.1),
    "floor": NormalizeWeights(TopK(6, 3), floor=1e-2),
    "min": TopK(6, 3, nonfinite="min"),
    **{
        f"reweigh_{score}": Reweigh(TopK(6, 3, score="sigmoid", expert_bias=True), score, renormalize=True)
        for score in ("softmax", "softmax_after", "sigmoid", "sqrtsoftplus")
    },
    "product": Reweigh(MultiplicativeBias(TopK(6, 3, score="none"), 6), "sigmoid", renormalize=True),
    "reweigh_function": Reweigh(TopK(6, 3), torch.exp),
    "reweigh_none": Reweigh(TopK(6, 3), "none", scale=2.0),
    "top2_sampled": Top2(6, second_expert="sample"),
    "top2_random": Top2(6, second_expert="random", threshold=1e-9),
}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_gradcheck(selection: nn.Module) -> None:
    z = torch.linspace(-1, 1, 30, dtype=torch.float64)[torch.randperm(30)].reshape(5, 6).requires_grad_()
    # The draws of Top2, held fixed.
    by_lot = getattr(selection, "second_expert", None) == "sample"
    sample = torch.rand((5, 6) if by_lot else 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: selection(z, sample=sample).topk_weights, z)


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_float32_for_any_logits_and_under_autocast(selection: nn.Module) -> None:
    z = torch.randn(5, 6)
    torch.manual_seed(0)
    expected = selection(z)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = selection(z)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    weights, ids = selection(z.bfloat16())
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    assert selection(z[:0]).topk_ids.shape == (0, ids.shape[1])


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_compiles_as_one_graph(selection: nn.Module) -> None:
    z = torch.randn(5, 6, requires_grad=True)
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    actual = compiled(z)
    torch.manual_seed(0)
    for a, b in zip(actual, selection(z), strict=True):
        torch.testing.assert_close(a, b)
    actual.topk_weights.square().sum().backward()
    assert z.grad.isfinite().all()


# Properties -------------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 9), st.integers(2, 9)).flatmap(
    lambda te: st.tuples(st.just(te[0]), st.just(te[1]), st.integers(1, te[1]), st.integers(0, 2**31))
)


def distinct_logits(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(num_experts, generator=generator) for _ in range(num_tokens)]
    return torch.stack(rows).double() * 0.7 + torch.rand(num_tokens, 1, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_renumbering_experts_renumbers_ids_and_leaves_weights(size: tuple[int, int, int, int]) -> None:
    num_tokens, num_experts, top_k, seed = size
    z = distinct_logits(num_tokens, num_experts, seed)
    order = torch.randperm(num_experts, generator=torch.Generator().manual_seed(seed))
    for selection in (TopK(num_experts, top_k), NormalizeWeights(TopK(num_experts, top_k), p=2.0), Top2(num_experts)):
        weights, ids = selection(z)
        renumbered_weights, renumbered_ids = selection(z[:, order])
        torch.testing.assert_close(renumbered_weights, weights)
        assert torch.equal(order[renumbered_ids.long()], ids.long())


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_all_experts_are_the_dense_softmax(size: tuple[int, int, int, int]) -> None:
    num_tokens, num_experts, _, seed = size
    z = distinct_logits(num_tokens, num_experts, seed)
    for selection in (
        TopK(num_experts, num_experts),
        TopK(num_experts, num_experts, renormalize=True),
        TopK(num_experts, num_experts, softmax_after=True),
        NormalizeWeights(TopK(num_experts, num_experts)),
    ):
        weights, ids = selection(z)
        dense = torch.zeros_like(z).scatter(1, ids.long(), weights)
        torch.testing.assert_close(dense, z.softmax(1), atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_softmax_before_or_after_top_k_is_the_same(size: tuple[int, int, int, int]) -> None:
    num_tokens, num_experts, top_k, seed = size
    z = distinct_logits(num_tokens, num_experts, seed)
    before, after = TopK(num_experts, top_k, renormalize=True)(z), TopK(num_experts, top_k, softmax_after=True)(z)
    assert torch.equal(before.topk_ids, after.topk_ids)
    torch.testing.assert_close(before.topk_weights, after.topk_weights)


# Decoupled weights ------------------------------------------------------------------------------------------------


def test_one_score_selects_and_another_weighs() -> None:
    gate = TopK(8, 3, score="sigmoid", expert_bias=True)
    gate.expert_bias.uniform_(-1, 1)
    z = torch.randn(64, 8)
    expected = gate(z)
    weights, ids = Reweigh(gate, "softmax")(z)
    assert torch.equal(ids, expected.topk_ids)
    torch.testing.assert_close(weights, z.softmax(1).gather(1, ids.long()))
    assert not torch.equal(ids, TopK(8, 3)(z).topk_ids)
    assert Reweigh(gate, "softmax").expert_bias is gate.expert_bias
    assert NormalizeWeights(gate).expert_bias is gate.expert_bias
    weights = Reweigh(gate, "one")(z).topk_weights
    assert (weights == 1).all()
    assert (Reweigh(gate, "relu")(z).topk_weights == z.gather(1, ids.long()).relu()).all()


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_a_bias_can_multiply(score: str) -> None:
    z = torch.randn(256, 8)
    selection = Reweigh(MultiplicativeBias(TopK(8, 3, score="none"), 8, score=score), score)
    for a, b in zip(selection(z), TopK(8, 3, score=score)(z), strict=True):
        torch.testing.assert_close(a, b)
    selection.expert_bias[5] = 0
    weights, ids = selection(z)
    assert not (ids == 5).any()
    torch.testing.assert_close(weights, (z.sigmoid() if score == "sigmoid" else z.softmax(1)).gather(1, ids.long()))
    update_expert_bias(selection.expert_bias, torch.tensor([1] * 5 + [0] + [1] * 2), 0.1)
    assert selection.expert_bias[5] == pytest.approx(0.1)


class Fixed(nn.Module):
    """Chooses nobody in row 0, one in row 1, two in row 2."""

    ids = torch.tensor([[-1, -1], [2, -1], [1, 0]], dtype=torch.int32)

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        return Routing(torch.where(self.ids >= 0, 0.5, 0.0), self.ids)


@pytest.mark.parametrize("score", ["softmax", "softmax_after", "sigmoid", "sqrtsoftplus", "relu", "none", "one"])
def test_slots_without_an_expert_weigh_nothing_and_have_no_gradient(score: str) -> None:
    z = torch.randn(3, 4)
    z[0] = torch.nan
    z.requires_grad_()
    weights, ids = NormalizeWeights(Reweigh(Fixed(), score), floor=0.1)(z)
    assert torch.equal(ids, Fixed.ids)
    assert (weights[ids < 0] == 0).all()
    torch.testing.assert_close(weights[1:].abs().sum(1), torch.ones(2))
    if score != "one":
        weights.sum().backward()
        assert (z.grad[0] == 0).all()
        assert z.grad.isfinite().all()


# Non-finite logits ------------------------------------------------------------------------------------------------


def test_what_is_not_finite_becomes_the_least_finite_logit() -> None:
    z = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, -2.0, -torch.inf]], requires_grad=True)
    weights, ids = TopK(3, 2, score="none", nonfinite="min")(z)
    assert weights.tolist() == [[3, 1], [-2, -2]]
    assert ids.tolist() == [[2, 0], [0, 1]]
    weights.sum().backward()
    assert z.grad.tolist() == [[1, 0, 1], [0, 1, 0]]
    nothing = TopK(3, 2, nonfinite="min")(torch.full((1, 3), torch.nan))
    assert nothing.topk_ids.tolist() == [[0, 1]]


# The pair of GShard -----------------------------------------------------------------------------------------------


def test_the_second_expert_is_kept_as_often_as_its_weight_asks() -> None:
    draws = 4000
    selection = Top2(4, second_expert="random")
    torch.manual_seed(0)
    weights, ids = selection(logits().repeat(draws, 1))
    taken = (ids[:, 1] >= 0).reshape(draws, 6)
    expected = torch.tensor([0.537883, 0.537883, 0.364851, 0.238406, 0.537883, 0.537883])
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((taken.float().mean(0) - expected).abs() < 4.5 * deviation).all()
    close(weights[:, 0].reshape(draws, 6)[7], torch.tensor(RENORMALIZED)[:, 0])
    assert (weights[ids < 0] == 0).all()
    assert (weights[ids[:, 1] >= 0][:, 1] > 0).all()


def test_the_rule_of_st_moe_keeps_from_its_threshold_on() -> None:
    selection = Top2(4, second_expert="random", threshold=0.2)
    # Second weights are .269, .182 and .119.
    sample = torch.full((6,), 0.9999)
    assert (selection(logits(), sample=sample).topk_ids[:, 1] >= 0).tolist() == [True, True, False, False, True, True]
    assert (selection(logits(), sample=sample * 0.7).topk_ids[:, 1] >= 0).tolist()[2:4] == [True, False]


def test_the_second_expert_by_lot_follows_the_softmax_of_the_others() -> None:
    draws = 4000
    z = logits()[:1].repeat(draws, 1)
    torch.manual_seed(0)
    weights, ids = Top2(4, second_expert="sample")(z)
    assert (ids[:, 0] == 0).all()
    expected = z[0, 1:].softmax(0).float()
    share = torch.bincount(ids[:, 1].long(), minlength=4)[1:] / draws
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / draws).sqrt()).all()
    p = z.softmax(1).gather(1, ids.long())
    torch.testing.assert_close(weights, p / p.sum(1, keepdim=True))


def test_evaluation_draws_nothing_unless_told_to() -> None:
    z = torch.zeros(64, 4)
    for second_expert in ("random", "sample"):
        selection = Top2(4, second_expert=second_expert).eval()
        for a, b in zip(selection(z), Top2(4)(z), strict=True):
            assert torch.equal(a, b)
        selection = Top2(4, second_expert=second_expert, threshold=2.0, at_eval=True).eval()
        assert not torch.equal(selection(z).topk_ids, Top2(4)(z).topk_ids)


def test_errors() -> None:
    with pytest.raises(ValueError, match="top_k must be in 1"):
        TopK(4, 5)
    with pytest.raises(ValueError, match="num_experts must be at least 2"):
        Top2(1)
    with pytest.raises(ValueError, match="second_expert must be"):
        Top2(4, second_expert="some")
    with pytest.raises(ValueError, match="threshold must be positive"):
        Top2(4, threshold=0.0)
    with pytest.raises(ValueError, match="p must be positive"):
        NormalizeWeights(TopK(4, 2), p=0)
    with pytest.raises(ValueError, match="score must be one of"):
        Reweigh(TopK(4, 2), "cosine")
    with pytest.raises(ValueError, match="score must be"):
        MultiplicativeBias(TopK(4, 2, score="none"), 4, score="none")
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        TopK(4, 2, nonfinite="max")(torch.zeros(1, 4))
