"""Losses over a process group: two ranks with a part of the tokens each, against one process with all of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from moe_ext import losses, route_with_statistics
from tests.losses.worked_example import logits, topk_ids

GroupLoss = Callable[..., Tensor]


def _importance(z: Tensor, ids: Tensor, **options: object) -> Tensor:
    return losses.importance_loss(z.gather(1, ids.long()).softmax(-1), ids, 4, **options)


def _load(z: Tensor, ids: Tensor, **options: object) -> Tensor:
    return losses.load_loss(z, z + 0.1 * z.sin(), 0.7, 2, **options)


def _tasks(z: Tensor, ids: Tensor, *, token_mask: Tensor, group: object = None) -> Tensor:
    tasks = (z.detach()[:, 0] > 1).double()
    # Sums, not a distribution of each rank: those would count a rank with few tokens as much as one with many.
    p = z.softmax(-1) * token_mask[:, None]
    joint = torch.stack(((p * tasks[:, None]).sum(0), (p * (1 - tasks)[:, None]).sum(0)))
    return losses.mutual_information_loss(joint, group=group)


def _task_statistics(z: Tensor, ids: Tensor, *, token_mask: Tensor, group: object = None) -> Tensor:
    statistics = losses.TaskExpertStatistics(2, 4, momentum=0.9)
    tasks = (z.detach()[:, 0] > 1).long()
    statistics.add(0.5 * z, tasks, token_mask=token_mask)
    statistics.reset(group=group)
    statistics.add(z, tasks, token_mask=token_mask)
    return 100 * statistics.mutual_information_loss(group=group)


def _accumulated(z: Tensor, ids: Tensor, *, token_mask: Tensor, group: object = None) -> Tensor:
    routing = losses.AccumulatedRouting(4)
    routing.add(z, z.gather(1, ids.long()).softmax(-1), ids, token_mask=token_mask)
    return (
        routing.importance_loss(group=group)
        + routing.load_balancing_loss(group=group)
        + routing.router_z_loss(group=group)
    )


def _statistics(z: Tensor, ids: Tensor, *, token_mask: Tensor, group: object = None) -> Tensor:
    routing = route_with_statistics(z.masked_fill(~token_mask[:, None], -torch.inf), 2, nonfinite="sanitize")
    return sum(losses.losses_from_statistics(routing, group=group))


def _overload(z: Tensor, ids: Tensor, *, group: object = None, **options: object) -> Tensor:
    # A sum over the rank's own tokens: the mean over ranks is that over R of them.
    ranks = 1 if group is None else dist.get_world_size(group)
    return ranks * losses.overload_loss(z, ids, group=group, **options)


# The value on each rank is the global loss, or only the mean over the ranks is; that of the gradients always.
GLOBAL_VALUE: dict[str, GroupLoss] = {
    "importance": _importance,
    "soft_importance": lambda z, ids, **options: losses.soft_importance_loss(z, **options),
    "load": _load,
    "straight_through": losses.straight_through_balance_loss,
    "straight_through_kl": lambda z, ids, **options: losses.straight_through_balance_loss(
        z, ids, form="kl", score="sigmoid", **options
    ),
    "global_entropy": lambda z, ids, **options: losses.global_entropy_loss(z, **options),
    "mutual_information": _tasks,
    "task_statistics": _task_statistics,
    "accumulated": _accumulated,
}
MEAN_VALUE: dict[str, GroupLoss] = {
    "load_balancing": losses.load_balancing_loss,
    "router_z": lambda z, ids, **options: losses.router_z_loss(z, **options),
    "local_entropy": lambda z, ids, **options: losses.local_entropy_loss(z, **options),
    "cluster_variance": lambda z, ids, **options: losses.cluster_variance_loss(z, 2, **options),
    "device": lambda z, ids, **options: losses.device_balance_loss(z, ids, 2, **options),
    "communication": lambda z, ids, **options: losses.communication_balance_loss(z, ids, 2, 2, **options),
    "statistics": _statistics,
    "overload": _overload,
}


def _compare(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    group = dist.group.WORLD
    rows = slice(0, 3) if rank == 0 else slice(3, 6)
    # An unequal number of tokens: three here, two there.
    mask = torch.tensor([True, True, True, True, False, True])
    for name, loss in (GLOBAL_VALUE | MEAN_VALUE).items():
        z = logits().requires_grad_()
        expected = loss(z, topk_ids(), token_mask=mask)
        (expected_gradient,) = torch.autograd.grad(expected, z)
        part = logits()[rows].requires_grad_()
        value = loss(part, topk_ids()[rows], token_mask=mask[rows], group=group)
        (gradient,) = torch.autograd.grad(value, part)
        torch.testing.assert_close(gradient / 2, expected_gradient[rows], msg=lambda text, name=name: f"{name}: {text}")
        value = value.detach().clone()
        if name in MEAN_VALUE:
            dist.all_reduce(value)
            value /= 2
        torch.testing.assert_close(value, expected.detach(), msg=lambda text, name=name: f"{name}: {text}")

    routing = losses.AccumulatedRouting(4)
    routing.add(logits()[rows], torch.ones(3, 2), topk_ids()[rows])
    mass = torch.stack([logits()[:3].softmax(-1).mean(0), logits()[3:].softmax(-1).mean(0)]).mean(0)
    torch.testing.assert_close(routing.topk_probability_loss(2, group=group), losses.topk_probability_loss(mass, 2))

    counts = losses.expert_counts(topk_ids()[rows], 4, group=group)
    assert counts.tolist() == [[5, 4, 2, 1]]

    # The counting over ranks is part of the graph.
    part = logits()[rows].requires_grad_()
    balance = torch.compile(losses.load_balancing_loss, fullgraph=True, backend="aot_eager")
    compiled = balance(part, topk_ids()[rows], group=group)
    eager = losses.load_balancing_loss(part, topk_ids()[rows], group=group)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(compiled, part), torch.autograd.grad(eager, part))

    # Each rank has another half of the same two sequences.
    other = torch.tensor([0, 1, 3, 4]) if rank == 0 else torch.tensor([2, 5])
    expected = losses.load_balancing_loss(logits(), topk_ids(), num_sequences=2)
    value = losses.load_balancing_loss(logits()[other], topk_ids()[other], num_sequences=2, group=group)
    dist.all_reduce(value)
    torch.testing.assert_close(value / 2, expected)

    # Two samples here, one there.
    mine = slice(0, 2) if rank == 0 else slice(2, 3)
    sample_types, expert_types = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0, 1])
    for form in ("paper", "code"):
        q = logits()[:3].exp().requires_grad_()
        expected = losses.localized_balance_loss(q, sample_types, expert_types, form=form)
        (expected_gradient,) = torch.autograd.grad(expected, q)
        q = logits()[mine].exp().requires_grad_()
        value = losses.localized_balance_loss(q, sample_types[mine], expert_types, form=form, group=group)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, q)[0] / 2, expected_gradient[mine])
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_mean_over_ranks_is_the_loss_of_all_tokens(tmp_path: Path) -> None:
    mp.spawn(_compare, (str(tmp_path / "store"),), nprocs=2)


def test_a_group_of_one_changes_nothing() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mask = torch.tensor([True, True, False, True, True, True])
        for loss in (GLOBAL_VALUE | MEAN_VALUE).values():
            alone = loss(logits(), topk_ids(), token_mask=mask)
            torch.testing.assert_close(loss(logits(), topk_ids(), token_mask=mask, group=dist.group.WORLD), alone)
    finally:
        dist.destroy_process_group()
