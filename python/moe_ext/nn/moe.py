"""The MoE feed-forward layer: router, experts, shared expert, auxiliary losses."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_ext.losses import (
    add_auxiliary_loss,
    expert_counts,
    load_balancing_loss,
    losses_from_statistics,
    router_z_loss,
)
from moe_ext.nn.experts import Experts
from moe_ext.nn.metrics import RoutingMetrics, routing_metrics
from moe_ext.nn.shared_expert import SharedExpert
from moe_ext.ops import RoutingWithStatistics
from moe_ext.ops.types import Routing
from moe_ext.routing import RouterOutput, TopKRouter
from moe_ext.routing._recomputation import assign_unless_recomputing


class MoELosses(NamedTuple):
    """Scalars in float32 (float64 for float64 input)."""

    load_balancing: Tensor
    """Without its coefficient."""
    router_z: Tensor
    """Without its coefficient."""
    total: Tensor
    """`load_balancing_coef * load_balancing + z_loss_coef * router_z`: add this one to the main loss."""


class MoEOutput(NamedTuple):
    """What `MoE.forward` returns when asked for more than y."""

    y: Tensor
    losses: MoELosses | None
    metrics: RoutingMetrics | None


class MoE(nn.Module):
    """A mixture-of-experts feed-forward layer without the residual connection around it.

    `y = sum_k w_k FFN_{id_k}(x) + shared(x)`, with `(w, id) = router(x)`.

    Submodules, each usable alone and replaceable by anything of the same contract: `router` (hidden states [T, H] ->
    `moe_ext.routing.RouterOutput`), `experts` (x [..., H], topk_weights, topk_ids -> [..., H]), `shared_expert`
    ([..., H] -> [..., H]) or None.

    **Auxiliary losses.** With a non-zero coefficient they act by themselves: in training, the backward pass through y
    adds the gradient of `MoELosses.total` (see `moe_ext.losses.add_auxiliary_loss`), and nothing has to be collected.
    If the main loss is scaled before `backward()` (gradient scaler, accumulation), set `auxiliary_loss_scale` to the
    same factor. `forward(x, return_losses=True)` hands the losses out instead, and then adds nothing by itself.

    **Balancing without a loss.** `aux_loss_free=True` gives the router an `expert_bias` and counts the load while
    training; call `update_expert_bias()` after each optimizer step (arXiv:2408.15664, DeepSeek-V3).

    **Other routers.** `router=` takes any router of the same contract in place of the built-in one, whose options then
    mean nothing: `moe_ext.routing.Router` and its published models. `capacity=` stands between router and experts and
    may drop slots or move them, such as `moe_ext.routing.Capacity`; losses, counts and the bias update see the choices
    from before it, metrics those after it.

    Args:
        hidden_size, intermediate_size, num_experts, top_k: H, I, E, K.
        router: a module (x [T, H], further keyword inputs of `forward`) -> `RouterOutput`, or None for a `TopKRouter`
            of the options below. With an attribute `takes_token_mask = True`, as those of `moe_ext.routing` have it, it
            is also given `token_mask` [T]. If it has a method `max_rows(num_tokens, ...)`, what that returns bounds the
            number of slots that name an expert.
        capacity: a module (Routing, router_logits=[T, E], num_sequences=B) -> Routing, or None for no limit. B is the
            number of sequences in x [..., S, H], or what `forward` is given as `num_sequences`.
        activation, bias, alpha, limit, apply_weights, save, workspace_limit, deterministic: of the experts, see
            `Experts`. expert_dropout: their `dropout`. The shared expert uses the same activation and bias.
        score, softmax_after, num_groups, topk_groups, group_top, group_fill, renormalize, eps, scale, nonfinite,
            jitter: of the router, see `TopKRouter` and `moe_ext.route`. `scale` multiplies the routed weights.
        router_bias: a trained bias of the router's logits.
        num_shared_experts: shared experts of width I each; together they are one dense network.
        shared_intermediate_size: width of that dense network, if it is not `num_shared_experts * I`.
        shared_expert_gate: multiply its output by a learned sigmoid (Qwen2-MoE).
        load_balancing_coef: coefficient of `moe_ext.losses.load_balancing_loss`. 0 for none.
        load_balancing_convention: "share" or "per_token", see there.
        load_balancing_scope: "micro_batch", or "sequence" to look at every x[..., :, :] by itself.
        load_balancing_counts: "routed" counts the experts used; "unbiased" the top-k of the plain scores, as the
            text of DeepSeek-V3 has it.
        z_loss_coef: coefficient of `moe_ext.losses.router_z_loss`. 0 for none.
        aux_loss_free: see above.
        init_std: normal initialisation of all weights with this deviation; None for that of `nn.Linear`.
        dtype: of experts and shared expert. The router stays in float32.
        device: of everything.

    Raises:
        ValueError: an unknown scope or count, a gate without a shared expert, `aux_loss_free` with a router that has no
            bias; what router and experts refuse.
    """

    router: Any
    """[T, H] -> `RouterOutput`."""
    expert_counts: Tensor | None
    """[E] int64, the load since the last `update_expert_bias`, with `aux_loss_free=True`. A plain attribute: data
    parallelism would overwrite a buffer with that of rank 0 before each forward pass."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        *,
        router: nn.Module | None = None,
        capacity: nn.Module | None = None,
        activation: str = "swiglu",
        bias: bool = False,
        alpha: float = 1.702,
        limit: float = 7.0,
        apply_weights: Literal["output", "input"] = "output",
        save: Literal["preact", "fp8", "none"] = "preact",
        workspace_limit: int | None = None,
        deterministic: bool = False,
        expert_dropout: float = 0.0,
        score: Literal["softmax", "sigmoid", "sqrtsoftplus", "none"] = "softmax",
        softmax_after: bool = False,
        num_groups: int = 1,
        topk_groups: int = 1,
        group_top: int = 1,
        group_fill: Literal["-inf", "0"] = "-inf",
        renormalize: bool = False,
        eps: float = 1e-20,
        scale: float = 1.0,
        nonfinite: Literal["propagate", "sanitize", "error"] = "propagate",
        jitter: float = 0.0,
        router_bias: bool = False,
        num_shared_experts: int = 0,
        shared_intermediate_size: int | None = None,
        shared_expert_gate: bool = False,
        load_balancing_coef: float = 0.0,
        load_balancing_convention: Literal["share", "per_token"] = "share",
        load_balancing_scope: Literal["micro_batch", "sequence"] = "micro_batch",
        load_balancing_counts: Literal["routed", "unbiased"] = "routed",
        z_loss_coef: float = 0.0,
        aux_loss_free: bool = False,
        init_std: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if load_balancing_scope not in ("micro_batch", "sequence"):
            raise ValueError(f"MoE: load_balancing_scope must be micro_batch or sequence, got {load_balancing_scope!r}")
        if load_balancing_counts not in ("routed", "unbiased"):
            raise ValueError(f"MoE: load_balancing_counts must be routed or unbiased, got {load_balancing_counts!r}")
        if shared_intermediate_size is None:
            shared_intermediate_size = num_shared_experts * intermediate_size
        if shared_expert_gate and not shared_intermediate_size:
            raise ValueError("MoE: shared_expert_gate=True needs num_shared_experts or shared_intermediate_size")
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.top_k = top_k
        self.load_balancing_coef = load_balancing_coef
        self.load_balancing_convention = load_balancing_convention
        self.load_balancing_scope = load_balancing_scope
        self.load_balancing_counts = load_balancing_counts
        self.z_loss_coef = z_loss_coef
        self.auxiliary_loss_scale = 1.0
        if router is not None and aux_loss_free and getattr(router, "expert_bias", None) is None:
            raise ValueError("MoE: aux_loss_free=True needs a router with an expert_bias")
        self.capacity = capacity
        self.router = (
            router
            if router is not None
            else TopKRouter(
                hidden_size,
                num_experts,
                top_k,
                score=score,
                softmax_after=softmax_after,
                num_groups=num_groups,
                topk_groups=topk_groups,
                group_top=group_top,
                group_fill=group_fill,
                renormalize=renormalize,
                eps=eps,
                scale=scale,
                nonfinite=nonfinite,
                bias=router_bias,
                expert_bias=aux_loss_free,
                jitter=jitter,
                init_std=init_std,
                device=device,
            )
        )
        ffn: dict[str, Any] = {
            "activation": activation,
            "bias": bias,
            "alpha": alpha,
            "limit": limit,
            "init_std": init_std,
            "dtype": dtype,
            "device": device,
        }
        self.experts = Experts(
            hidden_size,
            intermediate_size,
            num_experts,
            apply_weights=apply_weights,
            save=save,
            workspace_limit=workspace_limit,
            deterministic=deterministic,
            dropout=expert_dropout,
            **ffn,
        )
        self.shared_expert: SharedExpert | None = None
        if shared_intermediate_size:
            self.shared_expert = SharedExpert(hidden_size, shared_intermediate_size, gate=shared_expert_gate, **ffn)
        self.expert_counts = torch.zeros(num_experts, dtype=torch.int64, device=device) if aux_loss_free else None

    def reset_parameters(self) -> None:
        """(Re)initialise everything, for use after `to_empty` on a layer built on the meta device."""
        for module in (*self.router.modules(), self.experts, self.shared_expert):
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
        if self.expert_counts is not None:
            self.expert_counts.zero_()

    def forward(
        self,
        x: Tensor,
        *,
        token_mask: Tensor | None = None,
        return_losses: bool = False,
        return_metrics: bool = False,
        **route_inputs: Any,
    ) -> Tensor | MoEOutput:
        """Apply the layer.

        Args:
            x: [..., H] in the dtype of the experts (any under autocast).
            token_mask: [...] bool. False tokens (padding) are sent to no expert and enter no loss, count or metric;
                their y is that of the shared expert alone.
            return_losses: return `MoEOutput` with the losses, see above.
            return_metrics: return `MoEOutput` with the metrics, which cost nothing unless asked for.
            route_inputs: what a router of your own asks for beside x: tensors [...], such as `token_ids` or `task_ids`,
                and anything else as it is, such as `num_sequences`.

        Returns:
            y [..., H], or `MoEOutput` if losses or metrics were asked for.
        """
        jitter_input = getattr(self.router, "jitter_input", None)
        if jitter_input is not None:
            x = jitter_input(x)
        adds_losses = self._adds_losses() and not return_losses
        statistics = None
        plain = token_mask is None and not route_inputs
        if (return_losses or adds_losses) and plain and self._losses_are_sums():
            routed, statistics = self.router(x.reshape(-1, self.hidden_size), statistics=True)
        else:
            routed = self._route(x, token_mask, route_inputs)
        topk_weights, topk_ids, router_logits = routed
        if token_mask is not None:
            topk_ids = topk_ids.masked_fill(~token_mask.reshape(-1, 1), -1)
        if self.expert_counts is not None and self.training:
            counts = expert_counts(topk_ids, self.num_experts)[0]
            assign_unless_recomputing(self.expert_counts, self.expert_counts + counts)

        losses = None
        if return_losses or adds_losses:
            losses = self._losses(router_logits, topk_ids, _num_sequences(x), statistics)
        if adds_losses and losses is not None:
            # Carried by the weights, not by y: they are small, and y stays a tensor that may be modified in place.
            topk_weights = add_auxiliary_loss(topk_weights, losses.total, self.auxiliary_loss_scale)
            losses = None

        chosen_ids = topk_ids
        if self.capacity is not None:
            num_sequences = route_inputs.get("num_sequences", _num_sequences(x))
            topk_weights, topk_ids = self.capacity(
                Routing(topk_weights, topk_ids), router_logits=router_logits, num_sequences=num_sequences
            )
        bound = getattr(self.router, "max_rows", None)
        max_rows = None if bound is None else bound(len(topk_ids), **route_inputs)
        fewer_rows = {} if max_rows is None else {"max_rows": max_rows}
        y = self.experts(x, topk_weights, topk_ids, **fewer_rows)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        if not (return_losses or return_metrics):
            return y
        metrics = None
        if return_metrics:
            metrics = routing_metrics(
                router_logits, topk_ids, topk_weights, score=self._probability_score(), chosen_ids=chosen_ids
            )
        return MoEOutput(y, losses, metrics)

    def _route(self, x: Tensor, token_mask: Tensor | None, inputs: dict[str, Any]) -> RouterOutput:
        tokens = x.reshape(-1, self.hidden_size)
        by_token = {
            name: value.reshape(len(tokens), -1).squeeze(1) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        if token_mask is not None and getattr(self.router, "takes_token_mask", False):
            by_token["token_mask"] = token_mask.reshape(-1)
        return self.router(tokens, **by_token)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MoE":
        if self.expert_counts is not None:
            self.expert_counts = fn(self.expert_counts)
        return super()._apply(fn, recurse)

    def _adds_losses(self) -> bool:
        return bool((self.load_balancing_coef or self.z_loss_coef) and self.training and torch.is_grad_enabled())

    def _losses_are_sums(self) -> bool:
        """Whether sums over all tokens, which the router forms as it routes, are all that the losses need."""
        router = self.router
        return (
            isinstance(router, TopKRouter)
            and router.score != "none"
            and router.nonfinite != "sanitize"
            and self.load_balancing_scope == "micro_batch"
            and self.load_balancing_counts == "routed"
        )

    def _losses(
        self,
        router_logits: Tensor,
        topk_ids: Tensor,
        num_sequences: int,
        statistics: RoutingWithStatistics | None,
    ) -> MoELosses:
        if statistics is not None:
            sums = losses_from_statistics(statistics, convention=self.load_balancing_convention)
            return self._with_total(sums.load_balancing, sums.router_z)
        # Tokens that no expert was found for (masked, or sanitized logits) say nothing about the balance, and logits
        # that were NaN or +inf would turn the loss of all others into NaN.
        counted = (topk_ids >= 0).any(dim=1)
        if getattr(self.router, "nonfinite", "propagate") in ("sanitize", "min"):
            counted = counted & (router_logits < float("inf")).all(dim=1)
        balance = load_balancing_loss(
            router_logits,
            topk_ids,
            score=self._probability_score(),
            convention=self.load_balancing_convention,
            count="unbiased" if self.load_balancing_counts == "unbiased" else "slots",
            num_sequences=num_sequences if self.load_balancing_scope == "sequence" else 1,
            token_mask=counted,
        )
        router_z = router_z_loss(router_logits, token_mask=counted)
        return self._with_total(balance, router_z)

    def _with_total(self, balance: Tensor, router_z: Tensor) -> MoELosses:
        return MoELosses(balance, router_z, self.load_balancing_coef * balance + self.z_loss_coef * router_z)

    def _probability_score(self) -> Any:
        score = getattr(self.router, "score", "softmax")
        return score if score in ("sigmoid", "sqrtsoftplus") else "softmax"

    @torch.no_grad()
    def update_expert_bias(
        self,
        rate: float = 1e-3,
        mode: Literal["sign", "rms", "proportional"] = "sign",
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        """Move the router's `expert_bias` against the load counted since the last call, and start counting anew.

        Once per optimizer step, after it. The counts are summed over `group` (the default process group if
        torch.distributed is initialised), so every rank takes the same step. A forward pass that a checkpoint
        recomputes is counted once.

        Raises:
            RuntimeError: the layer was built with `aux_loss_free=False`.
        """
        if self.expert_counts is None:
            raise RuntimeError("MoE.update_expert_bias: this layer was built with aux_loss_free=False")
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.expert_counts, group=group)
        self.apply_expert_counts(rate, mode)

    @torch.no_grad()
    def apply_expert_counts(self, rate: float, mode: Literal["sign", "rms", "proportional"]) -> None:
        """`update_expert_bias` from `expert_counts` as they are, already summed over the ranks."""
        if self.expert_counts is None:
            raise RuntimeError("MoE.apply_expert_counts: this layer was built with aux_loss_free=False")
        self.router.update_expert_bias(self.expert_counts, rate, mode)
        self.expert_counts.zero_()

    def extra_repr(self) -> str:
        parts = []
        if self.load_balancing_coef:
            parts.append(
                f"load_balancing_coef={self.load_balancing_coef}, scope={self.load_balancing_scope!r}, "
                f"convention={self.load_balancing_convention!r}"
            )
        if self.z_loss_coef:
            parts.append(f"z_loss_coef={self.z_loss_coef}")
        if self.expert_counts is not None:
            parts.append("aux_loss_free=True")
        return ", ".join(parts)


def _num_sequences(x: Tensor) -> int:
    """B of x [..., S, H]."""
    return max(math.prod(x.shape[:-2]), 1)
