"""Expert choice with a bound on the experts of a token."""

import math

import torch
from torch import Tensor, nn

from moe_ext.ops import expert_choice
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import no_autocast
from moe_ext.routing.expert_choice import check_options, count_groups, expert_capacity, masked_scores, weights_at

# Of masked tokens: small enough to be nowhere, and finite, so that differences of it are no NaN.
_NOWHERE = -1e30


class ExpertChoiceCapped(nn.Module):
    """`ExpertChoice` in which a token gets at most b experts (EC-CAP: Zhou et al. 2022, arXiv:2202.09368, section 3.3).

    With S the scores, the matrix A that maximises `<S, A> + temperature * entropy(A)` subject to: k tokens for each
    expert, at most b experts for each token, entries in [0, 1]. It is found by projecting `exp(S / temperature)` onto
    the three sets in turn, in the Kullback-Leibler sense (Dykstra 1985; for such problems Benamou et al. 2015,
    arXiv:1412.5154). Each expert then takes its k tokens with the largest entries of A, and weights are scores, as
    without the bound. As A is not a matrix of zeros and ones, a token may still be among the first k of more than b
    experts: the b with the largest entries stay, and an expert may end up with a little less than k.

    Not causal: see `ExpertChoice`.

    Args:
        num_experts, capacity_factor, group_size: as in `ExpertChoice`.
        max_experts_per_token: b, also the width K of the result. At least the capacity factor.
        temperature: weight of the entropy, lambda in the paper.
        num_iterations: of the projections.

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
        self.max_experts_per_token = max_experts_per_token
        self.group_size = group_size
        self.temperature = temperature
        self.num_iterations = num_iterations

    def forward(
        self,
        router_logits: Tensor,
        *,
        token_mask: Tensor | None = None,
        num_sequences: int | None = None,
        **_: object,
    ) -> Routing:
        """As `ExpertChoice.forward`; ids are in the order of A."""
        with no_autocast(router_logits.device.type):
            num_tokens = router_logits.shape[0]
            num_groups = count_groups("ExpertChoiceCapped", num_tokens, self.group_size, num_sequences)
            capacity = expert_capacity(num_tokens // num_groups, self.num_experts, self.capacity_factor)
            scores = masked_scores(router_logits, token_mask)
            with torch.no_grad():
                log_a = scores / self.temperature
                if token_mask is not None:
                    log_a = log_a.masked_fill(~token_mask[:, None], _NOWHERE)
                log_a = self._project(log_a.view(num_groups, -1, self.num_experts), max(capacity, 1)).view_as(scores)
            choices = expert_choice(
                log_a,
                capacity,
                num_groups=num_groups,
                token_mask=token_mask,
                max_experts_per_token=self.max_experts_per_token,
            )
            return Routing(weights_at(scores, choices.topk_ids), choices.topk_ids)

    def _project(self, log_a: Tensor, capacity: int) -> Tensor:
        """log A of [G, n, E]. What a projection onto an inequality took away is given back before the next one."""
        log_capacity, log_bound = math.log(capacity), math.log(self.max_experts_per_token)
        from_bound = torch.zeros_like(log_a[..., :1])
        from_box = torch.zeros_like(log_a)
        for _ in range(self.num_iterations):
            log_a = log_a + (log_capacity - log_a.logsumexp(dim=1, keepdim=True))
            log_a = log_a + from_bound
            excess = (log_a.logsumexp(dim=2, keepdim=True) - log_bound).clamp(min=0)
            log_a, from_bound = log_a - excess, excess
            log_a = log_a + from_box
            excess = log_a.clamp(min=0)
            log_a, from_box = log_a - excess, excess
        return log_a

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, "
            f"max_experts_per_token={self.max_experts_per_token}, group_size={self.group_size}, "
            f"temperature={self.temperature}, num_iterations={self.num_iterations}"
        )
