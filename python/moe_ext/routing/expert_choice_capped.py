"""Expert choice with a bound on the experts of a token."""

import math

import torch
from torch import Tensor, nn

from moe_ext.ops import expert_choice
from moe_ext.ops._precision import no_autocast
from moe_ext.ops.types import Routing
from moe_ext.routing.expert_choice import (
    capacity_rule,
    check_options,
    count_groups,
    masked_scores,
    rows_of_all_groups,
    weights_at,
)

# The score of masked tokens: small enough to be nowhere, and finite, so that differences of it are no NaN.
_NOWHERE = -1e6
# The temperature to begin with: that of a matrix which hardly prefers anything.
_HOT = 0.3


class ExpertChoiceCapped(nn.Module):
    """`ExpertChoice` in which a token gets at most b experts (EC-CAP: Zhou et al. 2022, arXiv:2202.09368, section 3.3).

    With S the scores, the matrix A that maximises `<S, A> + temperature * entropy(A)` subject to: k tokens for each
    expert, at most b experts for each token, entries in [0, 1]. It is found by projecting `exp(S / temperature)` onto
    the three sets in turn, in the Kullback-Leibler sense (Dykstra 1985; for such problems Benamou et al. 2015,
    arXiv:1412.5154), while the temperature falls to its final value. Each expert then takes its k tokens with the
    largest entries of A, and weights are scores, as without the bound. As A is not a matrix of zeros and ones, a token
    may still be among the first k of more than b experts: the b with the largest entries stay, and an expert may end
    up with a little less than k. With fewer than E / b tokens in a group, nothing meets the constraints, and scores
    stand in for A.

    Not causal: see `ExpertChoice`.

    Args:
        num_experts, capacity_factor, group_size: as in `ExpertChoice`.
        max_experts_per_token: b, also the width K of the result. At least the capacity factor.
        temperature: weight of the entropy, lambda in the paper, at the end of the projections.
        num_iterations: of the projections, during the first three quarters of which the temperature falls.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        max_experts_per_token: int,
        capacity_factor: float = 2.0,
        group_size: int | None = None,
        temperature: float = 1e-3,
        num_iterations: int = 100,
    ) -> None:
        super().__init__()
        name = "ExpertChoiceCapped"
        check_options(name, num_experts, capacity_factor, max_experts_per_token, group_size)
        if max_experts_per_token < capacity_factor:
            raise ValueError(
                f"{name}: max_experts_per_token must be at least capacity_factor={capacity_factor}, which is what "
                f"tokens get in the mean, got {max_experts_per_token}"
            )
        if not temperature > 0:
            raise ValueError(f"{name}: temperature must be above 0, got {temperature}")
        if num_iterations < 0:
            raise ValueError(f"{name}: num_iterations must be at least 0, got {num_iterations}")
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.rule = capacity_rule(capacity_factor)
        self.max_experts_per_token = max_experts_per_token
        self.group_size = group_size
        self.temperature = temperature
        self.num_iterations = num_iterations

    def max_rows(self, num_tokens: int, *, num_sequences: int | None = None, **_: object) -> int:
        """As `ExpertChoice.max_rows`."""
        return rows_of_all_groups(self, num_tokens, num_sequences)

    def forward(
        self,
        router_logits: Tensor,
        *,
        token_mask: Tensor | None = None,
        num_sequences: int | None = None,
        **_: object,
    ) -> Routing:
        """As `ExpertChoice.forward`; ids are in the order of A, where that is 1 in that of what is cut off at 1."""
        with no_autocast(router_logits.device.type):
            num_tokens = router_logits.shape[0]
            num_groups = count_groups("ExpertChoiceCapped", num_tokens, self.group_size, num_sequences)
            capacity = self.rule.capacity(num_tokens // num_groups, self.num_experts, 1)
            scores = masked_scores(router_logits, token_mask)
            with torch.no_grad():
                ranked = scores if token_mask is None else scores.masked_fill(~token_mask[:, None], _NOWHERE)
                # Where tokens are too few to give every expert one, nothing meets the constraints: scores rank alone.
                if 0 < capacity * self.num_experts <= self.max_experts_per_token * (num_tokens // num_groups):
                    grouped = ranked.view(num_groups, -1, self.num_experts)
                    ranked = project_capped(
                        grouped, capacity, self.max_experts_per_token, self.temperature, self.num_iterations
                    ).view_as(scores)
            choices = expert_choice(
                ranked,
                capacity,
                num_groups=num_groups,
                token_mask=token_mask,
                max_experts_per_token=self.max_experts_per_token,
            )
            return Routing(weights_at(scores, choices.topk_ids), choices.topk_ids)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, "
            f"max_experts_per_token={self.max_experts_per_token}, group_size={self.group_size}, "
            f"temperature={self.temperature}, num_iterations={self.num_iterations}"
        )


# An op of its own, so that a compiled model has one node for it and not a thousand.
@torch.library.custom_op("moe_ext_routing::project_capped", mutates_args=())
def project_capped(scores: Tensor, capacity: int, bound: int, temperature: float, num_iterations: int) -> Tensor:
    """[G, n, E] -> temperature * log A, before A is cut off at 1, so that what is cut keeps its order."""
    log_capacity, log_bound = math.log(capacity), math.log(bound)
    # What each projection has added or taken away, in units of scores: the multipliers of the three constraints.
    of_expert = torch.zeros_like(scores[:, :1])
    of_token = torch.zeros_like(scores[..., :1])
    of_pair = torch.zeros_like(scores)
    for i in range(num_iterations):
        # From a high temperature down, which takes far fewer steps than the lowest one from the beginning.
        progress = min(1.0, i / max(1.0, 0.75 * num_iterations))
        t = max(temperature, _HOT) ** (1 - progress) * temperature**progress
        of_expert = t * (log_capacity - _logsumexp((scores - of_token - of_pair) / t, 1))
        rest = scores + of_expert
        of_token = (t * (_logsumexp((rest - of_pair) / t, 2) - log_bound)).clamp(min=0)
        of_pair = (rest - of_token).clamp(min=0)
    return scores + of_expert - of_token


@project_capped.register_fake
def _project_capped_fake(scores: Tensor, capacity: int, bound: int, temperature: float, num_iterations: int) -> Tensor:
    return torch.empty_like(scores)


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """Without the numbers below 2^-126 that torch.logsumexp adds: they change nothing and are slow."""
    high = x.amax(dim=dim, keepdim=True)
    return (x - high).clamp(min=-80.0).exp().sum(dim=dim, keepdim=True).log() + high
