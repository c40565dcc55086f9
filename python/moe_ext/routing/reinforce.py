"""Routing as a policy: an expert is sampled, and its log-probability is rewarded (REINFORCE)."""

from torch import Tensor, nn

from moe_ext.ops import _checks, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._random import draw_seed, random


class SampledSelection(nn.Module):
    """One expert per token with weight 1, sampled from softmax(router_logits) while training, else the most likely.

    RL-R of Clark et al. 2022, "Unified scaling laws for routed language models", arXiv:2202.01169. With weight 1 no
    gradient reaches the router through the output; `moe_ext.routing.reinforce_loss` trains it.

    Args:
        num_experts: E.

    Raises:
        TypeError, ValueError: `num_experts` that is no int or below 1.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        _checks.is_int("SampledSelection", "num_experts", num_experts, low=1)
        self.num_experts = num_experts

    def forward(self, router_logits: Tensor, *, seed: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, 1], ids [T, 1].

        `seed` ([1] int64 on the device of the logits) repeats a draw; None for one from torch's generator.
        """
        logits = wide(router_logits.detach())
        if self.training:
            seed = draw_seed(logits.device) if seed is None else seed
            # The largest of z + Gumbel noise is distributed like softmax(z).
            logits = logits + random(seed, tuple(logits.shape), "gumbel").to(logits.dtype)
        topk_ids = route(logits, 1, score="none").topk_ids
        return Routing(logits.new_ones(topk_ids.shape), topk_ids)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


def reinforce_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    reward: Tensor,
    *,
    baseline: Tensor | float = 0.0,
    entropy_coef: float = 0.0,
    token_mask: Tensor | None = None,
) -> Tensor:
    """`-mean_t (reward_t - baseline_t) log p_t[expert_t] - entropy_coef mean_t H(p_t)` with p = softmax(logits).

    REINFORCE (Williams 1992) on the choice of the expert, as in RL-R (arXiv:2202.01169). No gradient flows into reward
    or baseline; a learned baseline is trained by a loss of its own.

    Args:
        router_logits: [T, E].
        topk_ids: [T, 1], the experts that were sampled. Tokens with a sentinel do not count.
        reward: [T], for example minus the loss of the token.
        baseline: what the reward is compared with, [T] or one number: the less the variance is, the better.
        entropy_coef: how much a spread-out policy is worth.
        token_mask: [T] bool, False for tokens to leave out.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit.
    """
    num_tokens, num_experts = router_logits.shape
    if topk_ids.shape != (num_tokens, 1):
        raise ValueError(f"moe_ext.reinforce_loss: topk_ids must be [{num_tokens}, 1], got {tuple(topk_ids.shape)}")
    if reward.shape != (num_tokens,):
        raise ValueError(f"moe_ext.reinforce_loss: reward must be [{num_tokens}], got {tuple(reward.shape)}")
    ids = topk_ids.long()
    counted = ((ids >= 0) & (ids < num_experts)).squeeze(1)
    if token_mask is not None:
        counted = counted & token_mask.reshape(num_tokens)
    with no_autocast(router_logits.device.type):
        # Masked before the softmax: logits of a left-out token may be NaN, and 0 * NaN would reach the gradient.
        log_p = wide(router_logits).masked_fill(~counted[:, None], 0).log_softmax(dim=1)
        advantage = (reward - baseline).detach().to(log_p.dtype)
        per_token = -advantage * log_p.gather(1, ids.clamp(0, num_experts - 1)).squeeze(1)
        if entropy_coef:
            # p log p is 0 where p is, and so is its gradient: a logit of -inf must not make 0 * inf of it.
            negative_entropy = (log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0)).sum(1)
            per_token = per_token + entropy_coef * negative_entropy
        return per_token.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)
