"""The reference of route_top_p against sums done by hand."""

import pytest
import torch

from moe_ext import reference

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().unsqueeze(0)[:, [2, 0, 3, 1]]


@pytest.mark.parametrize(
    ("p", "chosen"),
    [(0.0, [1]), (0.4, [1]), (0.6, [1, 3]), (0.9, [1, 3, 0]), (0.97, [1, 3, 0, 2]), (1.0, [1, 3, 0, 2])],
)
def test_by_hand(p: float, chosen: list[int]) -> None:
    weights, ids = reference.route_top_p(LOGITS, p)
    n = len(chosen)
    assert ids.tolist() == [chosen + [-1] * (4 - n)]
    torch.testing.assert_close(weights[0, :n], torch.tensor([0.5, 0.3, 0.15, 0.05])[:n])
    assert not weights[0, n:].any()


def test_options_by_hand() -> None:
    weights, ids = reference.route_top_p(LOGITS, 0.6, max_k=3, renormalize=True, scale=2.0)
    assert ids.tolist() == [[1, 3, -1]]
    torch.testing.assert_close(weights, torch.tensor([[1.25, 0.75, 0.0]]))
    assert reference.route_top_p(LOGITS, 0.9, max_k=2)[1].tolist() == [[1, 3]]


def test_an_expert_that_cannot_be_chosen() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0]])
    assert reference.route_top_p(logits, 1.0)[1].tolist() == [[1, 2, -1]]


def test_scores_that_may_be_negative_are_refused() -> None:
    with pytest.raises(ValueError, match="score"):
        reference.route_top_p(LOGITS, 0.5, score="none")
