import torch

from moe_ext.reference import permute, slot_positions
from tests.support.cases import CASES

IDS = torch.tensor([[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]])


def test_worked_example() -> None:
    """First choices: expert 0 of tokens 0 and 3, expert 1 of 1, 4 and 5, expert 2 of 2; then the second ones."""
    positions, counts = slot_positions(IDS, 4)
    assert positions.tolist() == [[0, 3], [0, 0], [0, 2], [1, 1], [1, 3], [2, 4]]
    assert counts.tolist() == [[5, 4, 2, 1]]
    assert slot_positions(IDS, 4, "token")[0].tolist() == [[0, 0], [1, 0], [0, 1], [2, 1], [2, 3], [3, 4]]


def test_priorities() -> None:
    """Expert 0 has the slots (0, 0), (2, 1), (3, 0), (4, 1) and (5, 1)."""
    of_tokens = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.2, float("nan")])
    positions, _ = slot_positions(IDS, 4, priority=of_tokens)
    assert [int(positions[t, k]) for t, k in ((3, 0), (0, 0), (2, 1), (4, 1), (5, 1))] == [0, 1, 2, 3, 4]
    of_slots = of_tokens.unsqueeze(1).expand(6, 2)
    positions, _ = slot_positions(IDS, 4, priority=of_slots)
    assert [int(positions[t, k]) for t, k in ((3, 0), (2, 1), (4, 1), (0, 0), (5, 1))] == [0, 1, 2, 3, 4]


def test_groups_count_for_themselves() -> None:
    positions, counts = slot_positions(IDS, 4, group_size=4)
    assert counts.tolist() == [[3, 2, 2, 1], [2, 2, 0, 0]]
    assert positions.tolist() == [[0, 1], [0, 0], [0, 2], [1, 1], [0, 0], [1, 1]]


def test_in_order_of_tokens_a_position_is_a_row_in_its_expert() -> None:
    for case in CASES:
        ids, num_experts = case.topk_ids(), case.shape.num_experts
        offsets, _, slot_to_row = permute(ids, num_experts)
        first = offsets[ids.clamp(0, num_experts - 1).long()]
        expected = torch.where(slot_to_row >= 0, slot_to_row - first, -1)
        assert torch.equal(slot_positions(ids, num_experts, "token")[0], expected)
