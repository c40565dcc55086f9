"""Capacity as a stage between the router and the experts."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops._precision import wide
from moe_ext.ops.types import Routing
from moe_ext.routing._arguments import Routed, check_routing
from moe_ext.routing.capacity_rules import RULES, Rule, dynamic_capacity, make_rule
from moe_ext.routing.dropping import EPS, ORDERS, Order, limit_capacity
from moe_ext.routing.rerouting import reroute_overflow
from moe_ext.routing.second_expert import random_second_expert


class Capacity(nn.Module):
    """A limit on the slots of every expert: which of them stay, and with what weight.

    Comes after the router and before the experts; losses take the ids from before. What published models do:

    * Switch Transformer: `Capacity(E, rule="switch", factor=1.25, eval_factor=2.0, order="token")`
    * GShard: `Capacity(E, rule="gshard", group_size=S, second_threshold=0.5)`, without `second_threshold` after
      `published.gshard`, whose selection leaves out second experts already
    * V-MoE: `Capacity(E, rule="vmoe", order="priority")`
    * DeepSpeed-MoE: `Capacity(E, rule="deepspeed", order="random", renormalize=True)`
    * Tutel: `Capacity(E, rule="dynamic", factor=-1.5)`

    Args:
        num_experts: E.
        rule, factor, minimum: as in `expert_capacity`; in local groups T is the size of a group. "dynamic" is
            `dynamic_capacity`, with a factor of 0 unless given and no minimum.
        eval_factor: the factor outside of training; None: the same.
        drop_at_eval: False to drop nothing outside of training.
        order, group_size, renormalize, eps: as in `limit_capacity`. The random numbers of "random" are drawn anew in
            every forward, from torch's generator: a forward that is recomputed for a checkpoint draws the same.
        token_priority: what tokens are sorted by with order="priority": the "max" or the "sum" of their weights
            (V-MoE, arXiv:2106.05974, section 4, has both).
        second_threshold: while training, choices after the first are dispatched at random: 0.5 is GShard's rule, 0.2
            ST-MoE's; see `random_second_expert`. None: all are.
        reroute_iterations: how often a slot without a place may ask for another expert; see `reroute_overflow`. Needs
            the router logits.
        score: what makes scores of the logits for that: "softmax", "sigmoid" or "none".
        process_group: with "dynamic", the ranks that agree on the largest capacity.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        rule: Rule | Literal["dynamic"] = "megatron",
        factor: float | None = None,
        eval_factor: float | None = None,
        minimum: int | None = None,
        drop_at_eval: bool = True,
        order: Order = "choice",
        token_priority: Literal["max", "sum"] = "max",
        group_size: int | None = None,
        renormalize: bool = False,
        eps: float = EPS,
        second_threshold: float | None = None,
        reroute_iterations: int = 0,
        score: Literal["softmax", "sigmoid", "none"] = "softmax",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        name = "routing.Capacity"
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _checks.is_choice(name, "rule", rule, (*RULES, "dynamic"))
        _checks.is_choice(name, "order", order, ORDERS)
        _checks.is_choice(name, "token_priority", token_priority, ("max", "sum"))
        _checks.is_choice(name, "score", score, ("softmax", "sigmoid", "none"))
        _checks.is_int(name, "reroute_iterations", reroute_iterations, low=0)
        if group_size is not None:
            _checks.is_int(name, "group_size", group_size, low=1)
        if second_threshold is not None:
            _checks.is_number(name, "second_threshold", second_threshold, above=0.0)
        for given, value in (("factor", factor), ("eval_factor", eval_factor)):
            if value is not None:
                _checks.is_number(name, given, value, low=None if rule == "dynamic" else 0.0)
        if rule == "dynamic" and minimum is not None:
            raise ValueError(f'moe_ext.{name}: minimum must be None with rule="dynamic", got {minimum}')
        if rule != "dynamic" and process_group is not None:
            raise ValueError(f'moe_ext.{name}: process_group needs rule="dynamic", got rule="{rule}"')
        self.num_experts = num_experts
        self.rule = rule
        self.drop_at_eval = drop_at_eval
        self.order: Order = order
        self.token_priority = token_priority
        self.group_size = group_size
        self.renormalize = renormalize
        self.eps = eps
        self.second_threshold = second_threshold
        self.reroute_iterations = reroute_iterations
        self.score = score
        self.process_group = process_group
        eval_factor = factor if eval_factor is None else eval_factor
        self._dynamic_factors = (factor or 0.0, eval_factor or 0.0)
        self._rules = None
        if rule != "dynamic":
            self._rules = tuple(make_rule(name, rule, value, minimum) for value in (factor, eval_factor))

    def capacity(self, topk_ids: Tensor, *, training: bool | None = None) -> int | Tensor:
        """C for these ids [T, K]: an integer, or with "dynamic" an int32 scalar tensor."""
        which = 0 if (self.training if training is None else training) else 1
        if self._rules is None:
            return dynamic_capacity(
                topk_ids,
                self.num_experts,
                factor=self._dynamic_factors[which],
                group_size=self.group_size,
                process_group=self.process_group,
            )
        num_tokens, top_k = topk_ids.shape
        size = num_tokens if self.group_size is None else self.group_size
        return self._rules[which].capacity(size, self.num_experts, top_k)

    def forward(
        self,
        routing: Routed,
        *,
        router_logits: Tensor | None = None,
        priority: Tensor | None = None,
        training: bool | None = None,
        **_: object,
    ) -> Routing:
        """Limit.

        Args:
            routing: topk_weights [T, K] and topk_ids [T, K], such as a router's output.
            router_logits: [T, E], for rerouting; None takes those of a `RouterOutput`.
            priority: as in `limit_capacity`.
            training: the module's own unless given.

        Returns:
            `Routing`; dropped slots are (0, -1).

        Raises:
            ValueError: rerouting without router logits.
        """
        topk_weights, topk_ids = check_routing("routing.Capacity", routing)
        training = self.training if training is None else training
        limited = Routing(topk_weights, topk_ids)
        if not training and not self.drop_at_eval:
            return limited
        if training and self.second_threshold is not None:
            limited = random_second_expert(limited, threshold=self.second_threshold)
        if priority is None and self.order == "priority" and self.token_priority == "sum":
            priority = topk_weights.sum(1)
        capacity = self.capacity(limited.topk_ids, training=training)
        if not self.reroute_iterations:
            return limit_capacity(
                limited,
                self.num_experts,
                capacity,
                order=self.order,
                priority=priority,
                group_size=self.group_size,
                renormalize=self.renormalize,
                eps=self.eps,
            )
        router_logits = getattr(routing, "router_logits", None) if router_logits is None else router_logits
        if router_logits is None:
            raise ValueError("moe_ext.routing.Capacity: rerouting needs router_logits, got None")
        return reroute_overflow(
            limited,
            _scores(router_logits, self.score),
            self.num_experts,
            capacity,
            max_iterations=self.reroute_iterations,
            order=self.order,
            priority=priority,
            group_size=self.group_size,
            renormalize=self.renormalize,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        parts = [f"num_experts={self.num_experts}, rule={self.rule!r}, order={self.order!r}"]
        defaults: dict[str, Any] = {
            "group_size": None,
            "renormalize": False,
            "second_threshold": None,
            "reroute_iterations": 0,
            "drop_at_eval": True,
        }
        parts += [
            f"{name}={getattr(self, name)!r}" for name, default in defaults.items() if getattr(self, name) != default
        ]
        return ", ".join(parts)


def _scores(router_logits: Tensor, score: str) -> Tensor:
    logits = wide(router_logits)
    if score == "softmax":
        return torch.softmax(logits, 1)
    return torch.sigmoid(logits) if score == "sigmoid" else logits
