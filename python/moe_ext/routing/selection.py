"""From router logits to experts and weights: the selection that most models use. Others have files of their own."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._wrapper import SelectionWrapper


class TopK(Float32Module):
    """The `top_k` best experts of each token by score, as `moe_ext.route` has it.

    For weights that `moe_ext.route` doesn't compute see `moe_ext.routing.NormalizeWeights` and `Reweigh`.

    Args:
        num_experts, top_k: E, K. K = E is dense gating.
        score, softmax_after, num_groups, topk_groups, group_top, group_fill, renormalize, eps, scale:
            as in `moe_ext.route`. With `top_k=1`, `renormalize=True` leaves weights of 1 and no gradient.
        scale_renormalized: apply `scale` to renormalised weights, too, as DeepSeek-V3 does. The released code of
            DeepSeek-V2 does either one or the other: there it is False.
        nonfinite: as in `moe_ext.route`; or "min": what isn't finite becomes the least finite logit of the batch, as
            in the public code of BASE layers, StableMoE and X-MoE (0 if no logit is finite).
        expert_bias: keep a float32 buffer [E] that is added to the scores for the selection only (DeepSeek-V3,
            arXiv:2412.19437) and that `moe_ext.routing.update_expert_bias` moves. A buffer: no optimizer,
            weight decay or gradient touches it.
        device: of the buffer.

    Raises:
        ValueError: `top_k` outside 1..num_experts. What `moe_ext.route` refuses, it refuses in forward.
    """

    expert_bias: Tensor | None

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        *,
        score: Literal["softmax", "sigmoid", "sqrtsoftplus", "none"] = "softmax",
        softmax_after: bool = False,
        num_groups: int = 1,
        topk_groups: int = 1,
        group_top: int = 1,
        group_fill: Literal["-inf", "0"] = "-inf",
        renormalize: bool = False,
        eps: float = 1e-20,
        scale: float = 1.0,
        scale_renormalized: bool = True,
        nonfinite: Literal["propagate", "sanitize", "error", "min"] = "propagate",
        expert_bias: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"TopK: top_k must be in 1..num_experts={num_experts}, got {top_k}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.score = score
        self.nonfinite = nonfinite
        self.options: dict[str, Any] = {
            "score": score,
            "softmax_after": softmax_after,
            "num_groups": num_groups,
            "topk_groups": topk_groups,
            "group_top": group_top,
            "group_fill": group_fill,
            "renormalize": renormalize,
            "eps": eps,
            "scale": scale if scale_renormalized or not renormalize else 1.0,
            "nonfinite": "propagate" if nonfinite == "min" else nonfinite,
        }
        self.register_buffer(
            "expert_bias", torch.zeros(num_experts, dtype=torch.float32, device=device) if expert_bias else None
        )

    def reset_parameters(self) -> None:
        """Set the expert bias to zero."""
        if self.expert_bias is not None:
            self.expert_bias.zero_()

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        if self.nonfinite == "min":
            router_logits = finite_by_minimum(router_logits)
        return route(router_logits, self.top_k, bias=self.expert_bias, **self.options)

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if name != "nonfinite")
        return f"num_experts={self.num_experts}, top_k={self.top_k}, {options}, nonfinite={self.nonfinite!r}"


class MultiplicativeBias(SelectionWrapper):
    """Ranks experts by `score(router_logits) * expert_bias` instead of a sum: an ablation of arXiv:2408.15664.

    The weights it returns are those of the ranking; `moe_ext.routing.Reweigh` around it makes them the scores:
    `Reweigh(MultiplicativeBias(TopK(E, K, score="none"), E), "sigmoid", renormalize=True)`.

    Args:
        selection: what ranks; takes the products for logits.
        num_experts: E. The buffer `expert_bias` [E] starts as ones; `moe_ext.routing.update_expert_bias` moves it.
        score: "sigmoid" or "softmax".
        device: of the buffer.

    Raises:
        ValueError: an unknown `score`.
    """

    expert_bias: Tensor

    def __init__(
        self,
        selection: nn.Module,
        num_experts: int,
        *,
        score: Literal["sigmoid", "softmax"] = "sigmoid",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(selection)
        if score not in ("sigmoid", "softmax"):
            raise ValueError(f'MultiplicativeBias: score must be "sigmoid" or "softmax", got {score!r}')
        self.num_experts = num_experts
        self.score = score
        self.register_buffer("expert_bias", torch.ones(num_experts, dtype=torch.float32, device=device))

    def reset_parameters(self) -> None:
        """Set the expert bias to one."""
        self.expert_bias.fill_(1.0)

    def forward(self, router_logits: Tensor, **side: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        with no_autocast(router_logits.device.type):
            router_logits = wide(router_logits)
            scores = router_logits.sigmoid() if self.score == "sigmoid" else router_logits.softmax(dim=1)
            # In the dtype of the scores: a float32 product of float64 ones would make ties.
            routing: Routing = self.selection(scores * self.expert_bias.to(scores.dtype), **side)
            return routing

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, score={self.score!r}"


def finite_by_minimum(router_logits: Tensor) -> Tensor:
    """[T, E] -> [T, E] float32 (float64 for float64 logits): what isn't finite becomes the least that is.

    If nothing is, zeros. Replaced entries get no gradient.
    """
    with no_autocast(router_logits.device.type):
        router_logits = wide(router_logits)
        finite = router_logits.isfinite()
        # A constant beside the logits, so that a batch of no tokens has a minimum, too.
        candidates = torch.where(finite, router_logits.detach(), torch.inf).flatten()
        least = torch.cat([candidates, candidates.new_full((1,), torch.inf)]).amin()
        return torch.where(finite, router_logits, torch.where(least.isinf(), 0.0, least))
