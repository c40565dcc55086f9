"""Dropout of whole experts and of what they say: the family of regularisers around a router.

Dropout inside an expert (Switch Transformer's "expert dropout") is not here: it belongs to the experts.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks, route
from moe_ext.ops._precision import wide
from moe_ext.ops.types import Routing
from moe_ext.routing._arguments import Routed, check_routing
from moe_ext.routing._random import draw_seed, random
from moe_ext.routing.dropping import keep_slots


def drop_experts(
    num_rows: int,
    num_experts: int,
    rate: float,
    *,
    keep: int = 1,
    num_clusters: int = 1,
    seed: Tensor | None = None,
    device: Any = None,
) -> Tensor:
    """Which experts are dropped: each with probability `rate`, but never so many that fewer than `keep` are left.

    Args:
        num_rows, num_experts: shape of the result, one row for a batch or one for each token.
        rate: probability.
        keep: at least so many experts are left in each cluster.
        num_clusters: consecutive experts of one size; with `keep=1` MoEC's dropout (arXiv:2207.09094),
            where clusters never lose all their experts.
        seed: [1] int64 on `device`; None draws one from torch's generator.
        device: of the result, if there is no seed.

    Returns:
        [num_rows, num_experts] bool, true where an expert is dropped.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; clusters that do not divide the experts.
    """
    name = "routing.drop_experts"
    _checks.is_int(name, "num_experts", num_experts, low=1)
    _check_rate(name, rate)
    _checks.is_int(name, "num_clusters", num_clusters, low=1)
    if num_experts % num_clusters:
        raise ValueError(f"moe_ext.{name}: num_clusters must divide num_experts = {num_experts}, got {num_clusters}")
    _checks.is_int(name, "keep", keep, low=0, high=num_experts // num_clusters, why=" (experts of a cluster)")
    seed = draw_seed(torch.device("cpu" if device is None else device)) if seed is None else seed
    luck = random(seed, (num_rows, num_clusters, num_experts // num_clusters), "uniform")
    dropped = luck < rate
    if keep:
        # The luckiest stay, whatever the rate.
        dropped = dropped & (luck < luck.topk(keep, dim=2).values[..., -1:])
    return dropped.view(num_rows, num_experts)


class ExpertDropout(nn.Module):
    """A top-k selection that cannot choose some experts while training; what is chosen keeps its weight.

    SwitchHead (arXiv:2312.07987) and sigma-MoE (arXiv:2310.10837): experts are masked in the selection only,
    the gate values are those of the unmasked logits, and nothing is rescaled.

    Args:
        num_experts, top_k: E, K.
        rate: probability that an expert is dropped.
        per: "batch", the same experts for all tokens, or "token", others for every token.
        num_clusters: see `drop_experts`. At least K experts are left in all, and one in each cluster.
        score, renormalize, eps, scale: as in `moe_ext.route`; score is "softmax", "sigmoid" or "none".

    Raises:
        TypeError, ValueError: an option of the wrong type or range; clusters that do not divide the experts.
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        *,
        rate: float,
        per: Literal["batch", "token"] = "batch",
        num_clusters: int = 1,
        score: Literal["softmax", "sigmoid", "none"] = "sigmoid",
        renormalize: bool = False,
        eps: float = 1e-20,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        name = "routing.ExpertDropout"
        _checks.is_int(name, "top_k", top_k, low=1, high=num_experts, why=" (num_experts)")
        _check_rate(name, rate)
        _checks.is_choice(name, "per", per, ("batch", "token"))
        _checks.is_choice(name, "score", score, ("softmax", "sigmoid", "none"))
        _checks.is_int(name, "num_clusters", num_clusters, low=1)
        if num_experts % num_clusters:
            raise ValueError(f"moe_ext.{name}: num_clusters must divide num_experts={num_experts}, got {num_clusters}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.rate = rate
        self.per = per
        self.num_clusters = num_clusters
        self.score = score
        self.renormalize = renormalize
        self.eps = eps
        self.scale = scale
        # Enough for a selection wherever the experts that are left lie.
        self.keep = -(-top_k // num_clusters)

    def forward(self, router_logits: Tensor, *, seed: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]. `seed` [1] int64; None draws one from torch's generator."""
        logits = wide(router_logits)
        ranked = logits.detach()
        if self.training and self.rate > 0:
            dropped = drop_experts(
                logits.shape[0] if self.per == "token" else 1,
                self.num_experts,
                self.rate,
                keep=self.keep,
                num_clusters=self.num_clusters,
                seed=seed,
                device=logits.device,
            )
            ranked = ranked.masked_fill(dropped, -torch.inf)
        # Scores rise with logits, so these rank the same.
        topk_ids = route(ranked, self.top_k, score="none").topk_ids
        if self.score == "softmax":
            logits = torch.softmax(logits, 1)
        elif self.score == "sigmoid":
            logits = torch.sigmoid(logits)
        topk_weights = logits.gather(1, topk_ids.long())
        if self.renormalize:
            topk_weights = topk_weights / (topk_weights.sum(1, keepdim=True) + self.eps)
        return Routing(topk_weights * self.scale, topk_ids)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, rate={self.rate}, per={self.per!r}, "
            f"num_clusters={self.num_clusters}, score={self.score!r}, renormalize={self.renormalize}"
        )


def mask_expert_outputs(
    routing: Routed, rate: float, *, per: Literal["token", "slot"] = "token", seed: Tensor | None = None
) -> Routing:
    """Zero what the experts say to a token, with probability `rate`: expert output masking (NLLB, arXiv:2207.04672).

    Slots become (0, -1), so their experts are not even asked. Nothing is rescaled. While training only, and after the
    capacity, since masked tokens have had their places.

    Args:
        routing: topk_weights [T, K] and topk_ids [T, K].
        rate: probability; 0.2 in NLLB.
        per: "token", all slots of a token together, or "slot", each by itself.
        seed: [1] int64 on the device of the ids; None draws one from torch's generator.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    name = "routing.mask_expert_outputs"
    topk_weights, topk_ids = check_routing(name, routing)
    _check_rate(name, rate)
    _checks.is_choice(name, "per", per, ("token", "slot"))
    seed = draw_seed(topk_ids.device) if seed is None else seed
    num_tokens, top_k = topk_ids.shape
    keep = random(seed, (num_tokens, 1 if per == "token" else top_k), "uniform") >= rate
    return keep_slots(topk_weights, topk_ids, keep.expand(num_tokens, top_k), renormalize=False)


class GatingDropout(nn.Module):
    """With probability `rate` a step goes without exchange between ranks (arXiv:2205.14336).

    As noise of a `Router`: in such a step the logits of all experts but the local ones become -inf, so that tokens stay
    on their rank. `skip_experts` is the other kind. All ranks must agree on a step, so give them one seed, and K local
    experts are needed. Nothing happens outside of training. Not for selections by a sigmoid and a bias: a score of 0
    plus a bias may still win.

    Args:
        rate: probability of a step.
        first_expert, num_local_experts: the experts of this rank are first_expert up to first_expert +
            num_local_experts.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(self, rate: float, first_expert: int, num_local_experts: int) -> None:
        super().__init__()
        name = "routing.GatingDropout"
        _check_rate(name, rate)
        _checks.is_int(name, "first_expert", first_expert, low=0)
        _checks.is_int(name, "num_local_experts", num_local_experts, low=1)
        self.rate = rate
        self.first_expert = first_expert
        self.num_local_experts = num_local_experts

    def forward(self, router_logits: Tensor, x: Tensor | None = None, *, seed: Tensor | None = None) -> Tensor:
        """[T, E] -> [T, E]. `seed` [1] int64, the same on all ranks; None draws one from torch's generator."""
        if not self.training or self.rate == 0:
            return router_logits
        experts = torch.arange(router_logits.shape[1], device=router_logits.device)
        is_local = (experts >= self.first_expert) & (experts < self.first_expert + self.num_local_experts)
        step = _happens(self.rate, seed, router_logits.device)
        return router_logits.masked_fill(step & ~is_local, -torch.inf)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, first_expert={self.first_expert}, num_local_experts={self.num_local_experts}"


def skip_experts(routing: Routed, rate: float, *, seed: Tensor | None = None) -> Routing:
    """With probability `rate`, no token of this step goes to any expert (gating dropout, arXiv:2205.14336).

    Args:
        routing: topk_weights [T, K] and topk_ids [T, K].
        rate: probability of a step.
        seed: [1] int64 on the device of the ids, the same on all ranks; None draws one from torch's generator.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    name = "routing.skip_experts"
    topk_weights, topk_ids = check_routing(name, routing)
    _check_rate(name, rate)
    keep = ~_happens(rate, seed, topk_ids.device).unsqueeze(1).expand_as(topk_ids)
    return keep_slots(topk_weights, topk_ids, keep, renormalize=False)


def _happens(rate: float, seed: Tensor | None, device: torch.device) -> Tensor:
    """[1] bool, true with probability `rate`."""
    return random(draw_seed(device) if seed is None else seed, (1,), "uniform") < rate


def _check_rate(function: str, rate: float) -> None:
    _checks.is_number(function, "rate", rate, low=0.0)
    if rate > 1:
        raise ValueError(f"moe_ext.{function}: rate must be at most 1, got {rate}")
