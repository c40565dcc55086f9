"""A selection whose number of experts follows the router's confidence (Huang et al. 2024, arXiv:2403.07652)."""

from typing import Any, Literal

from torch import Tensor

from moe_ext.ops import route_top_p
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module


class TopP(Float32Module):
    """The fewest best experts of each token whose scores reach `p`, as `moe_ext.route_top_p` has it.

    Args:
        num_experts: E.
        p: what the scores of a token's experts add up to at least; the paper takes 0.4.
        max_k: most experts of a token, hence K; E if None.
        score, renormalize, eps, scale, nonfinite: as in `moe_ext.route_top_p`.

    Raises:
        ValueError: `p` below 0, or above 1 for a softmax; `max_k` outside 1..num_experts.
    """

    def __init__(
        self,
        num_experts: int,
        p: float = 0.4,
        *,
        max_k: int | None = None,
        score: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax",
        renormalize: bool = False,
        eps: float = 1e-20,
        scale: float = 1.0,
        nonfinite: Literal["propagate", "sanitize", "error"] = "propagate",
    ) -> None:
        super().__init__()
        if not p >= 0 or (score == "softmax" and p > 1):
            raise ValueError(f"TopP: p must be in 0..1 for a softmax and at least 0 for other scores, got {p}")
        if max_k is not None and not 1 <= max_k <= num_experts:
            raise ValueError(f"TopP: max_k must be in 1..num_experts={num_experts}, got {max_k}")
        self.num_experts = num_experts
        self.p = p
        self.top_k = num_experts if max_k is None else max_k
        self.score = score
        self.nonfinite = nonfinite
        self.options: dict[str, Any] = {
            "score": score,
            "renormalize": renormalize,
            "eps": eps,
            "scale": scale,
            "nonfinite": nonfinite,
        }

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K], where unused places are 0 and -1."""
        return route_top_p(router_logits, self.p, max_k=self.top_k, **self.options)

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"num_experts={self.num_experts}, p={self.p}, max_k={self.top_k}, {options}"
