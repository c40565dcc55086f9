"""As many experts as pass a threshold: hard tokens may get more of them than easy ones."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._slots import fill_slots

Score = Literal["sigmoid", "softmax", "relu", "none"]
SCORES = ("sigmoid", "softmax", "relu", "none")
Rule = Literal["budget", "cap", "simple"]
RULES = ("budget", "cap", "simple")


class ThresholdSelection(Float32Module):
    """The experts with `score + expert_bias > 0`, each weighted with a score.

    Su Jianlin, "MoE tour" part 4 (kexue.fm/archives/10815). The biases are all negative in practice. They are a buffer
    that takes part in the selection alone and that `moe_ext.routing.update_threshold_bias` moves after each optimizer
    step, towards equal loads and towards a budget of experts per token;
    `moe_ext.routing.initial_threshold_bias` says where to start.

    Args:
        num_experts: E.
        max_experts: K, the slots per token, 1..E; None for E. A token keeps the experts that pass by most.
        score: what is compared: "sigmoid", "softmax", "relu" or "none" (the logits).
        weight: what weights are made of, if not of `score`; any of the same.
        initial_bias: first value of `expert_bias`.
        device: of the buffer.

    Raises:
        ValueError: an unknown score, or `max_experts` outside 1..num_experts.
    """

    expert_bias: Tensor

    def __init__(
        self,
        num_experts: int,
        *,
        max_experts: int | None = None,
        score: Score = "sigmoid",
        weight: Score | None = None,
        initial_bias: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = "ThresholdSelection"
        weight = score if weight is None else weight
        max_experts = num_experts if max_experts is None else max_experts
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _checks.is_int(name, "max_experts", max_experts, low=1, high=num_experts, why=" (num_experts)")
        _checks.is_choice(name, "score", score, SCORES)
        _checks.is_choice(name, "weight", weight, SCORES)
        _checks.is_number(name, "initial_bias", initial_bias)
        self.num_experts = num_experts
        self.max_experts = max_experts
        self.score = score
        self.weight = weight
        self.initial_bias = initial_bias
        self.register_buffer("expert_bias", torch.empty(num_experts, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the expert bias to its first value."""
        self.expert_bias.fill_(self.initial_bias)

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]; a token that no expert passes for has no expert."""
        with no_autocast(router_logits.device.type):
            logits = wide(router_logits)
            scores = _score(logits, self.score)
            weights = scores if self.weight == self.score else _score(logits, self.weight)
            margin = scores.detach() + self.expert_bias.to(logits.dtype)
            return fill_slots(margin > 0, margin, weights, self.max_experts)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, max_experts={self.max_experts}, score={self.score!r}, "
            f"weight={self.weight!r}"
        )


@torch.no_grad()
def update_threshold_bias(
    expert_bias: Tensor,
    counts: Tensor,
    num_tokens: int | Tensor,
    target: float,
    *,
    rate: float = 1e-3,
    rule: Rule = "budget",
    mode: Literal["sign", "rms"] = "sign",
) -> Tensor:
    """Move the biases of a `ThresholdSelection` towards equal loads and `target` experts per token, in place.

    With `n_e = counts / num_tokens` (how many experts e a token has), `|n| = sum n_e`, `F = n / |n|` and Q = 1 / E:

    * `"budget"`: `b -= rate * (sign(F - Q) - mean(sign(F - Q)) + sign(|n| - target))`; the mean leaves the number of
      experts to the last term.
    * `"cap"`: the last term is `sign(max(|n| - target, 0))`: fewer than `target` are fine.
    * `"simple"`: `b -= rate * sign(n - target / E)`, both aims in one, less steady in the beginning.

    (Su Jianlin, "MoE tour" part 4, kexue.fm/archives/10815.) Where no token has an expert, F says nothing and every
    bias rises. Call it once per optimizer step, after it, with the counts of the global batch: see
    `moe_ext.routing.update_expert_bias`, its counterpart for a fixed number of experts.

    Args:
        expert_bias: [E] float32, changed in place.
        counts: [E], how many tokens each expert got, any integer or float dtype.
        num_tokens: how many tokens there were; an int, or one element on the device of `counts`. With 0 nothing moves.
        target: k, experts per token.
        rate: step size.
        rule: see above.
        mode: "sign", or "rms" for v / sqrt(mean v^2) instead of sign(v).

    Returns:
        `expert_bias`.

    Raises:
        ValueError: unknown rule or mode, shapes that differ, or a target that is not in (0, E].
    """
    name = "update_threshold_bias"
    _checks.is_choice(name, "rule", rule, RULES)
    _checks.is_choice(name, "mode", mode, ("sign", "rms"))
    if counts.shape != expert_bias.shape or counts.dim() != 1:
        raise ValueError(
            f"moe_ext.{name}: counts and expert_bias must be [E], got {tuple(counts.shape)} and "
            f"{tuple(expert_bias.shape)}"
        )
    num_experts = counts.shape[0]
    if not 0 < target <= num_experts:
        raise ValueError(f"moe_ext.{name}: target must be above 0 and at most {num_experts} (E), got {target}")

    # float64: counts of a global batch can exceed 2^24.
    load = counts.double()
    # A number is filled in, not copied to the device, which would wait for it.
    tokens = num_tokens.to(load).reshape(()) if isinstance(num_tokens, Tensor) else load.new_full((), num_tokens)
    load = load / tokens.clamp(min=1)
    total = load.sum()
    direction = torch.sign if mode == "sign" else _over_rms
    if rule == "simple":
        step = direction(load - target / num_experts)
    else:
        excess = total - target
        if rule == "cap":
            excess = torch.where(total > 0, excess.clamp(min=0), excess)
        error = (load / total.clamp(min=torch.finfo(torch.float64).tiny) - 1 / num_experts) * (total > 0)
        step = direction(error)
        step = step - step.mean() + excess.sign()
    return expert_bias.sub_((rate * step * (tokens > 0)).to(expert_bias.dtype))


def initial_threshold_bias(
    num_experts: int,
    target: float,
    *,
    logit_std: float = 1.0,
    score: Score = "sigmoid",
    num_tokens: int = 4096,
    generator: torch.Generator | None = None,
) -> float:
    """The bias, the same for every expert, with which tokens have `target` experts on average at initialisation.

    Found by bisection in [-1, 0] on logits drawn from N(0, logit_std^2), as kexue.fm/archives/10815 proposes.

    Args:
        num_experts: E. target: k, experts per token, in (0, E].
        logit_std: standard deviation of the logits: that of the router's weight times the norm of a token, so
            std sqrt(H) after an RMSNorm.
        score: that of the selection: "sigmoid" or "softmax", whose values lie in (0, 1).
        num_tokens: how many tokens to simulate.
        generator: of the logits.

    Raises:
        ValueError: an unknown score, or a target that is not in (0, E].
    """
    name = "initial_threshold_bias"
    _checks.is_int(name, "num_experts", num_experts, low=1)
    _checks.is_choice(name, "score", score, ("sigmoid", "softmax"))
    _checks.is_number(name, "logit_std", logit_std, low=0.0)
    if not 0 < target <= num_experts:
        raise ValueError(f"moe_ext.{name}: target must be above 0 and at most {num_experts} (E), got {target}")
    logits = torch.randn(num_tokens, num_experts, dtype=torch.float64, generator=generator) * logit_std
    scores = _score(logits, score)
    low, high = -1.0, 0.0
    for _ in range(60):
        bias = (low + high) / 2
        if float((scores + bias > 0).double().sum(1).mean()) < target:
            low = bias
        else:
            high = bias
    return high


def _score(logits: Tensor, score: str) -> Tensor:
    if score == "sigmoid":
        return logits.sigmoid()
    if score == "softmax":
        return logits.softmax(dim=-1)
    return F.relu(logits) if score == "relu" else logits


def _over_rms(v: Tensor) -> Tensor:
    # All zeros stay zeros.
    return v / v.square().mean().sqrt().clamp(min=torch.finfo(v.dtype).tiny)
