"""What is measured beside the metrics of a layer: churn, overflow, padding, and the picture of the load."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.nn import overflow_by_choice, padding_waste, plot_load, routing_churn, routing_metrics
from moe_ext.ops.types import Routing
from moe_ext.routing import limit_capacity
from tests.losses.worked_example import COUNTS, logits, topk_ids

# The same choices with two places per expert, first choices first (GShard).
KEPT = [[0, -1], [1, 3], [2, -1], [0, 2], [1, -1], [-1, -1]]


def test_shares_of_the_worked_example() -> None:
    metrics = routing_metrics(logits(), topk_ids())
    assert metrics.top_share.item() == pytest.approx(5 / 12)
    assert metrics.bottom_share.item() == pytest.approx(1 / 12)
    assert metrics.experts_per_token == 2
    after = routing_metrics(logits(), torch.tensor(KEPT))
    assert after.dropped_slots.item() == pytest.approx(5 / 12)
    assert after.dropped_tokens.item() == pytest.approx(1 / 6)
    assert after.experts_per_token.item() == pytest.approx(7 / 5)


def test_overflow_and_padding_of_the_worked_example() -> None:
    assert overflow_by_choice(topk_ids(), torch.tensor(KEPT)).tolist() == pytest.approx([1 / 6, 4 / 6])
    assert padding_waste(torch.tensor(COUNTS), 2).item() == pytest.approx(1 / 8)
    assert padding_waste(torch.tensor(COUNTS), 5).item() == pytest.approx(8 / 20)


@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(1, 7), st.integers(1, 4), st.integers(1, 5))
def test_counts_are_what_was_not_dropped(
    seed: int, num_tokens: int, num_experts: int, top_k: int, capacity: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(-1, num_experts, (num_tokens, top_k), generator=generator, dtype=torch.int32)
    kept = limit_capacity(Routing(torch.ones(chosen.shape), chosen), num_experts, capacity).topk_ids
    z = torch.randn(num_tokens, num_experts, generator=generator)
    before, after = routing_metrics(z, chosen), routing_metrics(z, kept)
    num_slots = num_tokens * top_k
    assert after.counts.sum() == num_slots - round(float(after.dropped_slots) * num_slots)
    lost = before.counts.sum() - after.counts.sum()
    by_choice = overflow_by_choice(chosen, kept) * (chosen >= 0).sum(0)
    assert by_choice.sum().item() == pytest.approx(lost.item(), abs=1e-4)
    waste = padding_waste(before.counts, capacity).item()
    assert waste == pytest.approx(1 - after.counts.sum().item() / (num_experts * capacity), abs=1e-6)
    assert (after.counts == before.counts.clamp(max=capacity)).all()
    assert (routing_churn(chosen, chosen[:, torch.randperm(top_k)]) == 0).all()


def test_churn_is_about_sets() -> None:
    before = torch.tensor([[0, 1], [2, 3], [1, -1], [4, 5]])
    after = torch.tensor([[1, 0], [2, 4], [-1, 1], [4, 5]])
    assert routing_churn(before, after).item() == pytest.approx(1 / 4)
    assert routing_churn(before[:0], after[:0]) == 0


@pytest.mark.parametrize(
    "counts", [torch.tensor(COUNTS), torch.tensor([COUNTS, [0, 0, 0, 0]]), torch.zeros(3)], ids=str
)
def test_the_picture(counts: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    axes = plot_load(counts, path=tmp_path / "load.png", title="layer 3")
    assert axes.get_title(loc="left").startswith("layer 3 (MaxVio ")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="shape of before"):
        routing_churn(topk_ids(), topk_ids()[:2])
    with pytest.raises(ValueError, match="shape of chosen_ids"):
        overflow_by_choice(topk_ids(), topk_ids()[:2])
    with pytest.raises(ValueError, match="at least 1"):
        padding_waste(torch.tensor(COUNTS), 0)
    with pytest.raises(ValueError, match="E > 0"):
        plot_load(torch.zeros(2, 0))
