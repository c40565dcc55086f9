"""Experts choose tokens: balanced by construction, with a number of experts that varies from token to token."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from moe_ext.ops import expert_choice, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._recomputation import assign_unless_recomputing, recomputing
from moe_ext.routing.capacity_rules import PreparedRule, make_rule

Inference = Literal["choice", "threshold"]


class ExpertChoice(Float32Module):
    """Each expert takes the `k = capacity_factor * n / E` tokens of n that score best with it.

    Expert choice (Zhou et al. 2022, arXiv:2202.09368): the scores are the softmax over experts, the weight of a chosen
    token is its score, not renormalised. Gradients reach the logits through the weights, by the whole Jacobian of the
    softmax. A token is chosen by none (the layer then gives it zero) up to all of the experts. No balancing loss is
    needed.

    The choice looks at every token of its group, later ones too. So it is not causal: a language model trained with it
    cannot be decoded token by token in the same way, and its training loss may use what it sees of the future. Two ways
    out:

    * `inference="threshold"`: while training, `threshold` [E] follows the score at which each expert's capacity ends
      (a running quantile), and with `.eval()` a token takes the experts whose threshold it reaches, whatever the other
      tokens do. What training sees stays as above. A forward that a checkpoint recomputes moves them once.
    * `CausalExpertChoice` chooses among earlier tokens only, in training too.

    Args:
        num_experts: E.
        capacity_factor: c, the mean number of experts per token.
        max_experts_per_token: K, the width of the result, 1..E; of more experts those with the token's best scores
            stay. None for E, which drops nothing, but later stages have T * K slots to hold.
        group_size: tokens in a group that is chosen from on its own, a sequence; None for all tokens of the call.
            `num_sequences` of the call goes before it.
        inference: how `.eval()` routes, see above.
        momentum: share of the newest score in the running thresholds.
        process_group: the ranks whose tokens make the thresholds, by an all-reduce of 2 E numbers in every forward
            while training. None: this rank's tokens alone, and with DistributedDataParallel, which broadcasts buffers,
            those of rank 0.
        device: of the buffers.

    Raises:
        ValueError: an option out of range.
    """

    threshold: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        max_experts_per_token: int | None = None,
        group_size: int | None = None,
        inference: Inference = "choice",
        momentum: float = 0.01,
        process_group: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if inference not in ("choice", "threshold"):
            raise ValueError(f"ExpertChoice: inference must be 'choice' or 'threshold', got {inference!r}")
        if not 0 < momentum <= 1:
            raise ValueError(f"ExpertChoice: momentum must be in (0, 1], got {momentum}")
        check_options("ExpertChoice", num_experts, capacity_factor, max_experts_per_token, group_size)
        if process_group is not None and inference != "threshold":
            raise ValueError(f"ExpertChoice: process_group needs inference='threshold', got {inference!r}")
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.rule = capacity_rule(capacity_factor)
        self.max_experts_per_token = num_experts if max_experts_per_token is None else max_experts_per_token
        self.group_size = group_size
        self.inference = inference
        self.momentum = momentum
        self.process_group = process_group
        tracks = inference == "threshold"
        self.register_buffer("threshold", torch.zeros(num_experts, device=device) if tracks else None)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device) if tracks else None)

    def reset_parameters(self) -> None:
        """Forget the running thresholds."""
        if self.inference == "threshold":
            self.threshold.zero_()
            self.num_updates.zero_()

    def forward(
        self,
        router_logits: Tensor,
        *,
        token_mask: Tensor | None = None,
        num_sequences: int | None = None,
        **_: object,
    ) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K] padded by (0, -1), best first.

        Args:
            router_logits: [T, E]. A NaN ranks first with every expert, and makes the weights of its token NaN.
            token_mask: [T] bool, False for tokens that nobody may choose.
            num_sequences: T is so many sequences of equal length, each chosen from on its own.

        Raises:
            ValueError: T is not a multiple of `group_size`, or of `num_sequences`.
        """
        with no_autocast(router_logits.device.type):
            scores = masked_scores(router_logits, token_mask)
            if self.inference == "threshold" and not self.training:
                return self._by_threshold(scores, token_mask)
            num_tokens = router_logits.shape[0]
            num_groups = count_groups("ExpertChoice", num_tokens, self.group_size, num_sequences)
            group_size = num_tokens // num_groups
            choices = expert_choice(
                scores,
                self.rule.capacity(group_size, self.num_experts, 1),
                num_groups=num_groups,
                token_mask=token_mask,
                max_experts_per_token=self.max_experts_per_token,
            )
            if self.inference == "threshold":
                self._follow(scores.detach(), choices.token_ids, token_mask, group_size)
            return Routing(weights_at(scores, choices.topk_ids), choices.topk_ids)

    def max_rows(self, num_tokens: int, *, num_sequences: int | None = None, **_: object) -> int | None:
        """The slots that name an expert are at most E times the capacity of every group; no bound by threshold."""
        if self.inference == "threshold" and not self.training:
            return None
        return rows_of_all_groups(self, num_tokens, num_sequences)

    def _by_threshold(self, scores: Tensor, token_mask: Tensor | None) -> Routing:
        reached = scores >= self.threshold
        if token_mask is not None:
            reached = reached & token_mask[:, None]
        return route_among(scores, reached, self.max_experts_per_token)

    @torch.no_grad()
    def _follow(self, scores: Tensor, token_ids: Tensor, token_mask: Tensor | None, group_size: int) -> None:
        """Moves `threshold` towards the mean over groups of the score of the last token that fits the capacity."""
        if recomputing():
            return
        num_groups, num_experts, capacity = token_ids.shape
        # Sum of those scores, and how many they are. Without tokens there are none, but other ranks wait for this one.
        ends = scores.new_zeros((2, num_experts))
        if capacity > 0:
            last = torch.full((num_groups,), capacity - 1, device=scores.device)
            if token_mask is not None:  # the capacity is that of the whole group; this is the part of what is there
                present = token_mask.view(num_groups, group_size).sum(1)
                last = capacity_on_device(present, num_experts, self.rule).clamp(max=capacity) - 1
            tokens = token_ids.gather(2, last.view(-1, 1, 1).expand(-1, num_experts, 1)).squeeze(2).long()
            found = tokens >= 0
            experts = torch.arange(num_experts, device=scores.device)
            at_the_end = torch.where(found, scores[tokens.clamp(min=0), experts], 0.0)
            ends = torch.stack([at_the_end.sum(0), found.sum(0).to(scores.dtype)])
        if self.process_group is not None:
            dist.all_reduce(ends, group=self.process_group)
        newest = (ends[0] / ends[1].clamp(min=1)).float()
        known = (ends[1] > 0) & newest.isfinite()
        step = torch.where(self.num_updates == 0, 1.0, self.momentum)
        moved = torch.where(known, torch.lerp(self.threshold, newest, step), self.threshold)
        assign_unless_recomputing(self.threshold, moved)
        assign_unless_recomputing(self.num_updates, self.num_updates + known.any())

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, "
            f"max_experts_per_token={self.max_experts_per_token}, group_size={self.group_size}, "
            f"inference={self.inference!r}"
        )


def check_options(
    name: str, num_experts: int, capacity_factor: float, max_experts_per_token: int | None, group_size: int | None
) -> None:
    """The options that all forms of expert choice share."""
    if num_experts < 1:
        raise ValueError(f"{name}: num_experts must be at least 1, got {num_experts}")
    if not 0 < capacity_factor <= num_experts:
        raise ValueError(f"{name}: capacity_factor must be in (0, num_experts={num_experts}], got {capacity_factor}")
    if max_experts_per_token is not None and not 1 <= max_experts_per_token <= num_experts:
        raise ValueError(
            f"{name}: max_experts_per_token must be in 1..num_experts={num_experts}, got {max_experts_per_token}"
        )
    if group_size is not None and group_size < 1:
        raise ValueError(f"{name}: group_size must be at least 1, got {group_size}")


def count_groups(name: str, num_tokens: int, group_size: int | None, num_sequences: int | None) -> int:
    """How many groups `num_tokens` are: as many as the call says, or what `group_size` makes."""
    if num_sequences is not None:
        if num_sequences < 1 or num_tokens % num_sequences != 0:
            raise ValueError(f"{name}: num_sequences must divide the {num_tokens} tokens, got {num_sequences}")
        return num_sequences
    if group_size is None or num_tokens == 0:
        return 1
    if num_tokens % group_size != 0:
        raise ValueError(f"{name}: group_size={group_size} must divide the {num_tokens} tokens")
    return num_tokens // group_size


def capacity_rule(capacity_factor: float) -> PreparedRule:
    """k = floor(c n / E) tokens for each expert, at least one if there is one."""
    return make_rule("routing.ExpertChoice", "expert_choice", float(capacity_factor), None)


def capacity_on_device(num_tokens: Tensor, num_experts: int, rule: PreparedRule) -> Tensor:
    """k of int64 numbers on a device; at least one even of none."""
    assert rule.factor is not None
    numerator, denominator = rule.factor
    return (num_tokens * numerator).div(denominator * num_experts, rounding_mode="floor").clamp(min=1)


def rows_of_all_groups(selection: Any, num_tokens: int, num_sequences: int | None) -> int:
    """How many tokens all experts of an `ExpertChoice` or `ExpertChoiceCapped` take together at most."""
    name = type(selection).__name__
    num_groups = count_groups(name, num_tokens, selection.group_size, num_sequences)
    return (
        num_groups * selection.num_experts * selection.rule.capacity(num_tokens // num_groups, selection.num_experts, 1)
    )


def masked_scores(router_logits: Tensor, token_mask: Tensor | None) -> Tensor:
    """Softmax over experts. Logits of masked tokens may be anything: they become zeros first, which keeps NaN out of
    the gradient."""
    logits = wide(router_logits)
    if token_mask is not None:
        logits = logits.masked_fill(~token_mask[:, None], 0.0)
    return logits.softmax(dim=1)


def weights_at(scores: Tensor, topk_ids: Tensor) -> Tensor:
    """scores [T, E] at ids [T, K], 0 where the id is -1."""
    return torch.where(topk_ids >= 0, scores.gather(1, topk_ids.clamp(min=0).long()), 0.0)


def route_among(scores: Tensor, allowed: Tensor, top_k: int) -> Routing:
    """The `top_k` best of the `allowed` experts of each token, weighted by their scores."""
    ranked = torch.where(allowed, scores.detach(), float("-inf"))
    ids = route(ranked, top_k, score="none").topk_ids
    topk_ids = torch.where(allowed.gather(1, ids.long()), ids, -1)
    return Routing(weights_at(scores, topk_ids), topk_ids)
