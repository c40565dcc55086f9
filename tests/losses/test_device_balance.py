from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from moe_ext.losses import communication_balance_loss, device_balance_loss, load_balancing_loss
from tests.losses.worked_example import logits, topk_ids


def test_worked_example() -> None:
    assert device_balance_loss(logits(), topk_ids(), 2).item() == pytest.approx(1.237864, abs=1e-6)
    assert communication_balance_loss(logits(), topk_ids(), 2, 2).item() == pytest.approx(0.868932, abs=1e-6)


def test_a_device_per_expert_is_the_balance_of_experts() -> None:
    torch.testing.assert_close(device_balance_loss(logits(), topk_ids(), 4), load_balancing_loss(logits(), topk_ids()))
    torch.testing.assert_close(
        communication_balance_loss(logits(), topk_ids(), 4, 2), load_balancing_loss(logits(), topk_ids())
    )


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balance_is_one(score: str) -> None:
    z = torch.zeros(4, 8)
    ids = torch.tensor([[0, 1, 4], [2, 3, 6], [4, 5, 0], [6, 7, 2]])
    assert device_balance_loss(z, ids, 4, score=score).item() == pytest.approx(1)
    # Every token on exactly two devices, though one of them gets two of its slots.
    assert communication_balance_loss(z, ids, 4, 2, score=score).item() == pytest.approx(1)


def test_names_of_experts_and_devices_do_not_matter() -> None:
    new_to_old = torch.tensor([2, 0, 3, 1])
    z, ids = logits()[:, new_to_old], new_to_old.argsort().int()[topk_ids().long()]
    devices = 1 - torch.tensor([0, 0, 1, 1])[new_to_old]
    for loss, extra in ((device_balance_loss, ()), (communication_balance_loss, (2,))):
        renamed = loss(z, ids, 2, *extra, expert_devices=devices)
        torch.testing.assert_close(renamed, loss(logits(), topk_ids(), 2, *extra))


def test_devices_of_different_sizes() -> None:
    devices = torch.tensor([0, 1, 1, 1])
    p = logits().softmax(-1).mean(0)
    f = torch.tensor([5, 4, 2, 1]) / 3
    expected = f[0] * p[0] + f[1:].mean() * p[1:].sum()
    torch.testing.assert_close(device_balance_loss(logits(), topk_ids(), 2, expert_devices=devices), expected)
    sent = torch.tensor([5, 6]) * 2 / (2 * 6)
    expected = sent[0] * p[0] + sent[1] * p[1:].sum()
    torch.testing.assert_close(communication_balance_loss(logits(), topk_ids(), 2, 2, expert_devices=devices), expected)


@pytest.mark.parametrize("loss", [device_balance_loss, partial(communication_balance_loss, devices_per_token=2)])
def test_per_sequence(loss: Callable[..., Tensor]) -> None:
    halves = [loss(logits()[rows], topk_ids()[rows], num_devices=2) for rows in (slice(0, 3), slice(3, 6))]
    both = loss(logits(), topk_ids(), num_devices=2, num_sequences=2)
    torch.testing.assert_close(both, torch.stack(halves).mean())


def test_sentinels_are_sent_nowhere() -> None:
    ids = topk_ids()
    ids[1] = torch.tensor([-1, 9])
    ids[2, 1] = -1
    keep = torch.tensor([0, 2, 3, 4, 5])
    p = logits()[keep].softmax(-1).mean(0)
    sent = torch.tensor([4, 2]) * 2 / (2 * 5)
    expected = sent[0] * p[:2].sum() + sent[1] * p[2:].sum()
    torch.testing.assert_close(communication_balance_loss(logits(), ids, 2, 2), expected)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_devices must divide num_experts = 4"):
        device_balance_loss(logits(), topk_ids(), 3)
    with pytest.raises(ValueError, match="num_devices must be at most 4"):
        communication_balance_loss(logits(), topk_ids(), 5, 1)
    with pytest.raises(ValueError, match="devices_per_token must be at most 2"):
        communication_balance_loss(logits(), topk_ids(), 2, 3)
    with pytest.raises(TypeError, match="expert_devices must be int32 or int64"):
        device_balance_loss(logits(), topk_ids(), 2, expert_devices=torch.zeros(4))
    with pytest.raises(ValueError, match="expert_devices must be"):
        device_balance_loss(logits(), topk_ids(), 2, expert_devices=torch.zeros(3, dtype=torch.int64))
