"""Experts that pass a threshold, and the biases that keep their number (Su Jianlin, kexue.fm/archives/10815)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.losses import expert_counts
from moe_ext.routing import ThresholdSelection, initial_threshold_bias, update_threshold_bias

A = torch.tensor([[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]])
COUNTS = torch.tensor([5, 4, 3, 2])
T, E = 6, 4


def test_selection_worked_example() -> None:
    weights, ids = ThresholdSelection(E, initial_bias=-0.7)(A)
    # Best first, then (-1, 0).
    assert ids.tolist() == [
        [0, 1, -1, -1],
        [1, 3, 0, -1],
        [2, -1, -1, -1],
        [0, 2, 3, -1],
        [1, 0, -1, -1],
        [1, 0, 2, -1],
    ]
    assert ids.dtype == torch.int32
    assert torch.equal(expert_counts(ids, E)[0], COUNTS)
    expected = A.sigmoid().gather(1, ids.long().clamp(min=0)).masked_fill(ids < 0, 0)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("rule", "mode", "target", "expected"),
    [
        ("budget", "sign", 1.5, [-2, -2, 0, 0]),
        ("budget", "sign", 3, [0, 0, 2, 2]),
        ("cap", "sign", 1.5, [-2, -2, 0, 0]),
        ("cap", "sign", 3, [-1, -1, 1, 1]),
        ("simple", "sign", 1.5, [-1, -1, -1, 1]),
        # F - Q = [6, 2, -2, -6] / 56: divided by its RMS of sqrt(20) / 56, and 1 for the budget.
        ("budget", "rms", 1.5, [-2.341641, -1.447214, -0.552786, 0.341641]),
        # n - k / E = [11, 7, 3, -1] / 24, RMS sqrt(45) / 24.
        ("simple", "rms", 1.5, [-1.639783, -1.043498, -0.447214, 0.149071]),
    ],
)
def test_update_worked_example(rule: str, mode: str, target: float, expected: list[float]) -> None:
    bias = torch.zeros(E)
    assert update_threshold_bias(bias, COUNTS, T, target, rate=1.0, rule=rule, mode=mode) is bias
    torch.testing.assert_close(bias, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["sign", "rms"])
@pytest.mark.parametrize("rule", ["budget", "cap", "simple"])
def test_update_at_the_aim_does_nothing(rule: str, mode: str) -> None:
    bias = torch.randn(E)
    before = bias.clone()
    update_threshold_bias(bias, torch.full((E,), 3), 6, 2.0, rule=rule, mode=mode)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("mode", ["sign", "rms"])
@pytest.mark.parametrize("rule", ["budget", "cap", "simple"])
def test_where_nobody_is_selected_every_bias_rises(rule: str, mode: str) -> None:
    bias = torch.zeros(E)
    update_threshold_bias(bias, torch.zeros(E, dtype=torch.int64), 10, 2.0, rate=1e-3, rule=rule, mode=mode)
    assert bias.tolist() == pytest.approx([1e-3] * E)


@pytest.mark.parametrize("rule", ["budget", "cap", "simple"])
def test_no_tokens_say_nothing(rule: str) -> None:
    bias = torch.zeros(E)
    update_threshold_bias(bias, torch.zeros(E), torch.zeros(1, dtype=torch.int64), 2.0, rule=rule)
    assert bias.tolist() == [0.0] * E


@pytest.mark.parametrize("rule", ["budget", "simple"])
@pytest.mark.parametrize("mode", ["sign", "rms"])
def test_iteration_reaches_the_budget_and_balance(rule: str, mode: str) -> None:
    num_experts, target = 8, 2.0
    logits = torch.randn(4096, num_experts) + torch.linspace(-1, 1, num_experts)
    selection = ThresholdSelection(num_experts, initial_bias=initial_threshold_bias(num_experts, target))
    for step in range(300):
        counts = expert_counts(selection(logits).topk_ids, num_experts)[0]
        update_threshold_bias(
            selection.expert_bias, counts, 4096, target, rate=5e-3 / (1 + step / 50), rule=rule, mode=mode
        )
    per_token = counts.double() / 4096
    assert abs(float(per_token.sum()) - target) < 0.02
    assert float(per_token.max() - per_token.min()) < 0.01


@pytest.mark.parametrize(("score", "std"), [("sigmoid", 0.02), ("sigmoid", 1.0), ("softmax", 1.0)])
def test_initial_bias_gives_the_target(score: str, std: float) -> None:
    generator = torch.Generator().manual_seed(1)
    bias = initial_threshold_bias(16, 3.0, logit_std=std, score=score, generator=generator)
    assert -1 < bias < 0
    logits = torch.randn(20_000, 16) * std
    ids = ThresholdSelection(16, score=score, initial_bias=bias)(logits).topk_ids
    # Standard deviation of the simulated mean: sqrt(16 * 3 / 16 * 13 / 16 / 4096) = 0.025.
    assert abs(float((ids >= 0).sum(1).double().mean()) - 3) < 0.1


@given(st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_slots_hold_the_best_of_what_passes(seed: int, max_experts: int) -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    selection = ThresholdSelection(5, max_experts=max_experts)
    selection.expert_bias.copy_(torch.linspace(-0.6, -0.4, 5))
    _, ids = selection(logits)
    margin = logits.sigmoid() + selection.expert_bias
    for row, chosen in zip(margin, ids.tolist(), strict=True):
        passing = sorted((e for e in range(5) if row[e] > 0), key=lambda e: -float(row[e]))[:max_experts]
        assert chosen == passing + [-1] * (max_experts - len(passing))


def test_other_weights() -> None:
    weights, ids = ThresholdSelection(E, weight="softmax", initial_bias=-0.7)(A)
    torch.testing.assert_close(weights[0, :2], A[0].softmax(0)[:2])
    assert ids[0].tolist() == [0, 1, -1, -1]


def test_nan_is_not_selected() -> None:
    weights, ids = ThresholdSelection(2)(torch.tensor([[float("nan"), 1.0], [float("-inf"), float("nan")]]))
    assert ids.tolist() == [[1, -1], [-1, -1]]
    assert weights.isfinite().all()


def test_gradient() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    for score in ("sigmoid", "softmax"):
        selection = ThresholdSelection(5, score=score, initial_bias=-0.3)
        assert torch.autograd.gradcheck(lambda z, selection=selection: selection(z).topk_weights, logits)


def test_the_bias_is_a_float32_buffer() -> None:
    selection = ThresholdSelection(E, initial_bias=-0.7).bfloat16()
    assert not list(selection.parameters())
    assert selection.state_dict()["expert_bias"].dtype == torch.float32
    assert float(selection.expert_bias[0]) == pytest.approx(-0.7)


def test_compiles_as_one_graph() -> None:
    selection = ThresholdSelection(E, max_experts=2, initial_bias=-0.7)
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(A), selection(A), strict=True):
        torch.testing.assert_close(a, b)
    update = torch.compile(update_threshold_bias, fullgraph=True, backend="aot_eager")
    bias = torch.zeros(E)
    update(bias, COUNTS, T, 1.5, rate=1.0)
    assert bias.tolist() == [-2, -2, 0, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="max_experts must be at most 4"):
        ThresholdSelection(E, max_experts=5)
    with pytest.raises(ValueError, match="score must be one of"):
        ThresholdSelection(E, score="tanh")
    with pytest.raises(ValueError, match="weight must be one of"):
        ThresholdSelection(E, weight="tanh")
    with pytest.raises(ValueError, match="rule must be one of"):
        update_threshold_bias(torch.zeros(E), COUNTS, T, 2.0, rule="exact")
    with pytest.raises(ValueError, match="mode must be one of"):
        update_threshold_bias(torch.zeros(E), COUNTS, T, 2.0, mode="cosine")
    with pytest.raises(ValueError, match=r"counts and expert_bias must be \[E\]"):
        update_threshold_bias(torch.zeros(3), COUNTS, T, 2.0)
    with pytest.raises(ValueError, match="target must be above 0 and at most 4"):
        update_threshold_bias(torch.zeros(E), COUNTS, T, 5.0)
    with pytest.raises(ValueError, match="score must be one of"):
        initial_threshold_bias(E, 2.0, score="relu")
    with pytest.raises(ValueError, match="target must be above 0"):
        initial_threshold_bias(E, 0.0)
