"""expert_choice, auction and sinkhorn in plain torch, against numbers worked out by hand and brute force."""

from itertools import product

import pytest
import torch

from moe_ext.reference import auction, expert_choice, sinkhorn

INF, NAN = float("inf"), float("nan")


def test_expert_choice_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 5.0], [3.0, 0.0]])
    token_ids, topk_ids = expert_choice(scores, 2)
    assert token_ids.tolist() == [[[0, 3], [2, 0]]]
    assert topk_ids.tolist() == [[0, 1], [-1, -1], [1, -1], [0, -1]]
    assert expert_choice(scores, 2, max_experts_per_token=1)[1].flatten().tolist() == [0, -1, 1, 0]


def test_expert_choice_by_hand_in_groups_with_a_mask() -> None:
    scores = torch.tensor([[3.0, 1.0], [1.0, NAN], [-INF, 5.0], [3.0, 0.0]])
    mask = torch.tensor([False, True, True, True])
    token_ids, topk_ids = expert_choice(scores, 2, num_groups=2, token_mask=mask)
    assert token_ids.tolist() == [[[1, -1], [1, -1]], [[3, -1], [2, 3]]]
    assert topk_ids.tolist() == [[-1, -1], [1, 0], [1, -1], [0, 1]]


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(4, 2), (5, 2), (4, 3), (6, 3), (3, 4)])
def test_auction_is_within_epsilon_of_brute_force(num_tokens: int, num_experts: int) -> None:
    places = -(-num_tokens // num_experts)
    for _ in range(10):
        scores = torch.randn(num_tokens, num_experts, dtype=torch.float64)
        every = product(range(num_experts), repeat=num_tokens)
        balanced = (a for a in every if max(map(a.count, a)) <= places)
        best = max(float(scores[range(num_tokens), list(a)].sum()) for a in balanced)
        experts = auction(scores)
        assert torch.bincount(experts).max() <= places
        epsilon = float(scores.max() - scores.min()) / 50
        assert float(scores.gather(1, experts.long()[:, None]).sum()) >= best - num_tokens * epsilon


def test_auction_by_hand() -> None:
    """Tokens 0 and 1 both bid for expert 0; token 1 loses less by going elsewhere."""
    assert auction(torch.tensor([[3.0, 0.0], [3.0, 2.0]])).tolist() == [0, 1]
    assert auction(torch.tensor([[3.0, 0.0], [3.0, 2.0]]), token_mask=torch.tensor([False, True])).tolist() == [-1, 0]


def test_sinkhorn_by_hand() -> None:
    """[[a, b], [c, d]] keeps ad / bc, and with sums of one is [[p, 1-p], [1-p, p]]: p / (1-p) is the root of it."""
    balanced = sinkhorn(torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64), tolerance=0.0)
    p = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))  # log(ad / bc) = 4
    torch.testing.assert_close(balanced, torch.stack([p, 1 - p, 1 - p, p]).view(2, 2))
