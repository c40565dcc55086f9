"""What to watch while an MoE layer trains: is the load even, and does the router still decide anything."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.losses import expert_counts


class RoutingMetrics(NamedTuple):
    """Tensors on the device of the routing, so that reading them is the only synchronisation. No gradient."""

    counts: Tensor
    """[E] int64, slots per expert."""
    load: Tensor
    """[E], share of the assigned slots per expert; 1/E each when balanced."""
    max_violation: Tensor
    """MaxVio = (max count - mean count) / mean count, 0 when balanced (arXiv:2408.15664)."""
    min_violation: Tensor
    """(min count - mean count) / mean count, -1 when an expert is unused."""
    load_cv: Tensor
    """Coefficient of variation (standard deviation / mean) of the counts."""
    load_entropy: Tensor
    """Entropy of `load` in nats, ln E when balanced."""
    unused_experts: Tensor
    """int64, experts without a slot."""
    router_entropy: Tensor
    """Mean over tokens of the entropy of the router's probabilities, in nats: 0 when certain."""
    mean_probability_entropy: Tensor
    """Entropy of the mean probabilities, in nats: ln E when they are balanced."""
    dropped_slots: Tensor
    """Share of the T*K slots that hold a sentinel."""
    dropped_tokens: Tensor
    """Share of the tokens without any expert."""
    weight_sum: Tensor
    """Mean over tokens that have an expert of the sum of their weights; nan if no weights were given."""
    experts_per_token: Tensor
    """Mean over tokens that have an expert of how many they have."""
    top_share: Tensor
    """Share of the slots that the busiest fifth of the experts holds (rounded up); 0.2 or a bit more when balanced."""
    bottom_share: Tensor
    """Share of the slots that the idlest fifth of the experts holds."""


@torch.no_grad()
def routing_metrics(
    router_logits: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor | None = None,
    *,
    score: str = "softmax",
    chosen_ids: Tensor | None = None,
) -> RoutingMetrics:
    """Measure one routing.

    Args:
        router_logits: [T, E]. topk_ids: [T, K], sentinels allowed. topk_weights: [T, K], optional.
        score: softmax, sigmoid or sqrtsoftplus (the last two divided by their sum): how the entropies see the logits;
            anything else counts as softmax.
        chosen_ids: [T, K], the ids from before a capacity stage, if there was one: the entropies are those of all
            tokens that the router chose for, not of those that kept an expert.
    """
    num_tokens, num_experts = router_logits.shape
    counts = expert_counts(topk_ids, num_experts)[0]
    count = counts.to(torch.float64)
    mean = count.mean().clamp(min=torch.finfo(torch.float64).tiny)
    load = count / count.sum().clamp(min=1)
    is_expert = (topk_ids >= 0) & (topk_ids < num_experts)
    has_expert = is_expert.any(dim=1)
    tokens = has_expert.sum().clamp(min=1)

    # A token without an expert (padding, or logits that were not finite) says nothing about the router.
    routed = has_expert if chosen_ids is None else ((chosen_ids >= 0) & (chosen_ids < num_experts)).any(dim=1)
    num_routed = routed.sum().clamp(min=1)
    logits = router_logits.double().masked_fill(~routed[:, None], 0)
    if score in ("sigmoid", "sqrtsoftplus"):
        scores = logits.sigmoid() if score == "sigmoid" else F.softplus(logits).sqrt()
        probabilities = scores / scores.sum(dim=-1, keepdim=True)
    else:
        probabilities = logits.softmax(dim=-1)
    mean_probability = (probabilities * routed[:, None]).sum(0) / num_routed
    if topk_weights is None:
        weight_sum = torch.full((), float("nan"), device=router_logits.device)
    else:
        weight_sum = topk_weights.double().masked_fill(~is_expert, 0).sum() / tokens
    ranked = load.sort().values
    fifth = -(-num_experts // 5)
    return RoutingMetrics(
        counts=counts,
        load=load.float(),
        max_violation=((count.max() - mean) / mean).float(),
        min_violation=((count.min() - mean) / mean).float(),
        load_cv=(count.std(correction=0) / mean).float(),
        load_entropy=_entropy(load).float(),
        unused_experts=(counts == 0).sum(),
        router_entropy=((_entropy(probabilities) * routed).sum() / num_routed).float(),
        mean_probability_entropy=_entropy(mean_probability).float(),
        dropped_slots=(~is_expert).sum() / max(topk_ids.numel(), 1),
        dropped_tokens=(~has_expert).sum() / max(num_tokens, 1),
        weight_sum=weight_sum.float(),
        experts_per_token=(is_expert.sum() / tokens).float(),
        top_share=ranked[-fifth:].sum().float(),
        bottom_share=ranked[:fifth].sum().float(),
    )


@torch.no_grad()
def routing_churn(before: Tensor, after: Tensor) -> Tensor:
    """Share of the tokens whose set of experts changed between two routings of the same tokens.

    StableMoE (arXiv:2204.08396, section 2.2) measures with it how much a router still wavers late in training.

    Args:
        before, after: topk_ids [T, K], sentinels allowed, the order within a token means nothing.

    Returns:
        Scalar float32; 0 without tokens.

    Raises:
        ValueError: the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"routing_churn: after must have the shape of before, {tuple(before.shape)}, got {tuple(after.shape)}"
        )
    changed = (before.clamp(min=-1).sort(dim=1).values != after.clamp(min=-1).sort(dim=1).values).any(dim=1)
    return changed.sum() / max(len(before), 1)


@torch.no_grad()
def overflow_by_choice(chosen_ids: Tensor, kept_ids: Tensor) -> Tensor:
    """Share of the first, second, ... choices that capacity took away.

    Args:
        chosen_ids: topk_ids [T, K] as the router chose. kept_ids: the same after a capacity stage, dropped slots -1.

    Returns:
        [K] float32; 0 for a choice that nobody made.

    Raises:
        ValueError: the shapes differ.
    """
    if chosen_ids.shape != kept_ids.shape:
        raise ValueError(
            f"overflow_by_choice: kept_ids must have the shape of chosen_ids, {tuple(chosen_ids.shape)}, "
            f"got {tuple(kept_ids.shape)}"
        )
    chosen = (chosen_ids >= 0).sum(0)
    return (chosen - (kept_ids >= 0).sum(0)) / chosen.clamp(min=1)


@torch.no_grad()
def padding_waste(counts: Tensor, capacity: int) -> Tensor:
    """Share of the places of [E, capacity] buffers that stay empty: 1 - kept / (E * capacity).

    Args:
        counts: [E] slots per expert before dropping. capacity: places per expert, at least 1.

    Raises:
        ValueError: `capacity` is below 1.
    """
    if capacity < 1:
        raise ValueError(f"padding_waste: capacity must be at least 1, got {capacity}")
    return 1 - counts.clamp(max=capacity).sum() / (counts.numel() * capacity)


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
