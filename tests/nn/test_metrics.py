"""What is measured beside the metrics of a layer: churn, overflow, padding, and the picture of the load."""

from pathlib import Path

import pytest
import torch

from moe_ext.nn import overflow_by_choice, padding_waste, plot_load, routing_churn, routing_metrics
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
