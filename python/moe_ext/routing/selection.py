"""From router logits to experts and weights: the selection that most models use. Others have files of their own."""

from typing import Any, Literal

import torch
from torch import Tensor

from moe_ext.ops import route
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module


class TopK(Float32Module):
    """The `top_k` best experts of each token by score, as `moe_ext.route` has it.

    Args:
        num_experts, top_k: E, K.
        score, softmax_after, num_groups, topk_groups, group_top, group_fill, renormalize, eps, scale, nonfinite:
            as in `moe_ext.route`.
        expert_bias: keep a float32 buffer [E] that is added to the scores for the selection only (DeepSeek-V3,
            arXiv:2412.19437, eq. 16) and that `moe_ext.routing.update_expert_bias` moves.
        device: of the buffer.

    Raises:
        ValueError: `top_k` outside 1..num_experts.
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
        nonfinite: Literal["propagate", "sanitize", "error"] = "propagate",
        expert_bias: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"TopK: top_k must be in 1..num_experts={num_experts}, got {top_k}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.options: dict[str, Any] = {
            "score": score,
            "softmax_after": softmax_after,
            "num_groups": num_groups,
            "topk_groups": topk_groups,
            "group_top": group_top,
            "group_fill": group_fill,
            "renormalize": renormalize,
            "eps": eps,
            "scale": scale,
            "nonfinite": nonfinite,
        }
        self.register_buffer(
            "expert_bias", torch.zeros(num_experts, dtype=torch.float32, device=device) if expert_bias else None
        )

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        return route(router_logits, self.top_k, bias=self.expert_bias, **self.options)

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"num_experts={self.num_experts}, top_k={self.top_k}, {options}"
