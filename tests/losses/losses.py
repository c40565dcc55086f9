"""Every loss as a function of (logits [T, E], ids [T, K], token_mask or None), for what holds for all of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_ext import losses

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _noise(like: Tensor) -> Tensor:
    """Numbers that belong to a logit, wherever relabelling moves it: no two of the noisy logits are then equal."""
    return 0.3 * torch.sin(7 * like.detach().nan_to_num() + 2)


def _importance(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    weights = z.gather(1, ids.long()).softmax(-1)
    return losses.importance_loss(weights, ids, z.shape[1], correction=1, token_mask=mask)


def _load(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    std = torch.nn.functional.softplus(0.5 * z)
    return losses.load_loss(z, z + std * _noise(z), std, 2, token_mask=mask)


def _vmoe_load(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    std = 1 / z.shape[1]
    return losses.load_loss(z, z + std * _noise(z), std, 2, exclude_self=False, token_mask=mask)


def _mutual_information(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    statistics = losses.TaskExpertStatistics(3, z.shape[1])
    # A task that depends on the token alone, not on where it stands: the first choice's weight.
    tasks = (z.detach().nan_to_num().sum(1) > 2).long()
    statistics.add(z, tasks, token_mask=mask)
    return statistics.mutual_information_loss()


def _accumulated(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    routing = losses.AccumulatedRouting(z.shape[1])
    weights = z.gather(1, ids.long()).softmax(-1)
    routing.add(z, weights, ids, token_mask=mask)
    routing.add(2 * z, weights.square(), ids, token_mask=mask)
    return (
        routing.importance_loss()
        + routing.load_balancing_loss()
        + routing.router_z_loss()
        + routing.topk_probability_loss(2)
    )


def _outputs(z: Tensor) -> Tensor:
    """[T, E, 3], something that each expert could have made of each token."""
    return torch.stack((z.sin(), z.cos(), z), dim=-1)


def _targets(z: Tensor) -> Tensor:
    return z.detach().sum(1, keepdim=True).repeat(1, 3).cos()


def _contrast(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    outputs = _outputs(z).gather(1, ids.long()[:, :, None].expand(-1, -1, 3))
    return losses.expert_contrastive_loss(outputs, ids, temperature=0.5, token_mask=mask)


def _tasks(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    features = torch.stack((z.sum(1), z.square().sum(1), z.exp().sum(1)), dim=1)
    return losses.task_contrastive_loss(features, (features[:, 0].detach().nan_to_num() > 2).long(), token_mask=mask)


def _localized(z: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    types = torch.ones(z.shape[1], dtype=torch.int64)
    importance = losses.sample_importance(z, 1, token_mask=mask)
    return losses.localized_balance_loss(importance, types[:1], types, form="code")


LOSSES: dict[str, Loss] = {
    "load_balancing": lambda z, ids, mask: losses.load_balancing_loss(z, ids, token_mask=mask),
    "load_balancing_sqrtsoftplus": lambda z, ids, mask: losses.load_balancing_loss(
        z, ids, score="sqrtsoftplus", convention="load", count="first", token_mask=mask
    ),
    "load_balancing_unbiased": lambda z, ids, mask: losses.load_balancing_loss(
        z + 0.1 * _noise(z), ids, score="sigmoid", count="unbiased", token_mask=mask
    ),
    "router_z": lambda z, ids, mask: losses.router_z_loss(z, token_mask=mask),
    "importance": _importance,
    "soft_importance": lambda z, ids, mask: losses.soft_importance_loss(z, token_mask=mask),
    "load": _load,
    "vmoe_load": _vmoe_load,
    "straight_through": lambda z, ids, mask: losses.straight_through_balance_loss(z, ids, token_mask=mask),
    "straight_through_entropy": lambda z, ids, mask: losses.straight_through_balance_loss(
        z, ids, form="entropy", score="sigmoid", normalize=False, token_mask=mask
    ),
    "device": lambda z, ids, mask: losses.device_balance_loss(z, ids, 2, token_mask=mask),
    "communication": lambda z, ids, mask: losses.communication_balance_loss(z, ids, 2, 2, token_mask=mask),
    "mutual_information": _mutual_information,
    "accumulated": _accumulated,
    "overload": lambda z, ids, mask: losses.overload_loss(z, ids, token_mask=mask),
    "distillation": lambda z, ids, mask: losses.routing_distillation_loss(z, ids[:, 0], token_mask=mask),
    "consistency": lambda z, ids, mask: losses.consistency_loss(z, z.cos(), token_mask=mask),
    "local_entropy": lambda z, ids, mask: losses.local_entropy_loss(z, token_mask=mask),
    "global_entropy": lambda z, ids, mask: losses.global_entropy_loss(z, min_experts=3.9, token_mask=mask),
    "cooperative": lambda z, ids, mask: losses.cooperative_loss(_outputs(z), z, _targets(z), token_mask=mask),
    "competitive": lambda z, ids, mask: losses.competitive_loss(_outputs(z), z, _targets(z), token_mask=mask),
    "likelihood": lambda z, ids, mask: losses.mixture_likelihood_loss(_outputs(z), z, _targets(z), token_mask=mask),
    "expert_contrastive": _contrast,
    "task_contrastive": _tasks,
    "token_selection": lambda z, ids, mask: losses.token_selection_loss(
        z.sum(1), z.detach().sum(1) > 3, token_mask=mask
    ),
    "localized": _localized,
    "cluster_variance": lambda z, ids, mask: losses.cluster_variance_loss(z, 2, token_mask=mask),
}

OF_CLUSTERS = {"device", "communication", "cluster_variance"}
"""They ask which experts belong together, so that relabelling changes them."""

GRADIENT_IS_NOT_OF_VALUE = {
    *("straight_through", "straight_through_entropy"),
    *("load", "vmoe_load", "load_balancing_unbiased", "cooperative", "competitive", "likelihood"),
}
"""The first two on purpose; the others because of what is made from detached logits here. Their own tests have it."""
