import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_ext.losses import TaskExpertStatistics, mutual_information_loss
from tests.losses.worked_example import logits

JOINT = [[0.30, 0.15, 0.05], [0.05, 0.10, 0.35]]


def joint() -> Tensor:
    return torch.tensor(JOINT, dtype=torch.float64)


def test_worked_example() -> None:
    assert mutual_information_loss(joint()).item() == pytest.approx(-0.230645, abs=1e-6)
    assert mutual_information_loss(joint(), eps=1e-4).item() == pytest.approx(-0.230246, abs=1e-6)
    # Sums over tokens will do.
    assert mutual_information_loss(600 * joint()).item() == pytest.approx(-0.230645, abs=1e-6)


def test_range() -> None:
    assert mutual_information_loss(torch.eye(3)).item() == pytest.approx(-math.log(3))
    independent = torch.tensor([[0.2], [0.8]]) * torch.tensor([[0.5, 0.3, 0.2]])
    assert mutual_information_loss(independent).item() == pytest.approx(0, abs=1e-6)
    assert mutual_information_loss(torch.zeros(2, 3)) == 0


def test_gradient() -> None:
    assert gradcheck(mutual_information_loss, joint().requires_grad_())
    assert gradcheck(lambda x: mutual_information_loss(x, eps=1e-4), joint().requires_grad_())
    with_zeros = torch.tensor([[0.5, 0.0], [0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(mutual_information_loss(with_zeros), with_zeros)
    assert gradient.isfinite().all()


def test_one_task_per_forward_pass() -> None:
    statistics = TaskExpertStatistics(2, 4)
    z = logits().requires_grad_()
    statistics.add(z[:4], 0)
    statistics.add(z[4:], 1)
    expected = torch.stack((z[:4].softmax(-1).sum(0), z[4:].softmax(-1).sum(0))) / 6
    torch.testing.assert_close(statistics.joint(), expected)
    loss = statistics.mutual_information_loss()
    torch.testing.assert_close(loss, mutual_information_loss(expected))
    assert (torch.autograd.grad(loss, z)[0] != 0).any(1).all(), "both passes get a gradient"
    statistics.reset()
    with pytest.raises(RuntimeError, match="nothing was added"):
        statistics.joint()


def test_tasks_per_token_and_padding() -> None:
    statistics = TaskExpertStatistics(2, 4)
    tasks = torch.tensor([0, 1, 1, 0, -1, 5])
    mask = torch.tensor([True, True, True, False, True, True])
    z = logits()
    z[3:] = torch.nan
    statistics.add(z, tasks, score="sigmoid", token_mask=mask)
    scores = logits().sigmoid()
    p = scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(statistics.joint(), torch.stack((p[0], p[1] + p[2])) / 3)


def test_minimising_it_gives_each_task_its_experts() -> None:
    z = (0.1 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(200):
        statistics = TaskExpertStatistics(2, 4)
        statistics.add(z, torch.tensor([0, 1]))
        optimizer.zero_grad()
        statistics.mutual_information_loss().backward()
        optimizer.step()
    assert statistics.mutual_information_loss().item() == pytest.approx(-math.log(2), abs=4e-3)


def test_running_average_has_no_gradient() -> None:
    statistics = TaskExpertStatistics(2, 4, momentum=0.9)
    z = logits().requires_grad_()
    statistics.add(z[:3], 0)
    first = statistics.joint().detach()
    statistics.reset()
    statistics.add(z[3:], 1)
    second = z[3:].softmax(-1).sum(0) / 3
    torch.testing.assert_close(statistics.joint(), 0.9 * first + 0.1 * torch.stack((0 * second, second)))
    (gradient,) = torch.autograd.grad(statistics.mutual_information_loss(), z)
    assert (gradient[:3] == 0).all()
    assert (gradient[3:] != 0).any()


def test_errors() -> None:
    with pytest.raises(ValueError, match="joint must be"):
        mutual_information_loss(joint()[0])
    with pytest.raises(ValueError, match="eps must be at least 0"):
        mutual_information_loss(joint(), eps=-1.0)
    with pytest.raises(ValueError, match="momentum must be at most 1"):
        TaskExpertStatistics(2, 4, momentum=1.5)
    statistics = TaskExpertStatistics(2, 4)
    with pytest.raises(ValueError, match="task_ids must be at most 1"):
        statistics.add(logits(), 2)
    with pytest.raises(ValueError, match="router_logits must be"):
        statistics.add(logits()[:, :3], 0)
    with pytest.raises(ValueError, match="task_ids must be"):
        statistics.add(logits(), torch.zeros(3, dtype=torch.int64))
