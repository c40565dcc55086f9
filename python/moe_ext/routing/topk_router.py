"""A linear router with top-k selection: the score of every MoE model in one module."""

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from moe_ext.ops import RoutingWithStatistics, route, route_with_statistics
from moe_ext.routing._gate import LinearGate
from moe_ext.routing.expert_bias import UpdateMode, update_expert_bias
from moe_ext.routing.jitter import jittered
from moe_ext.routing.router import RouterOutput


class TopKRouter(LinearGate):
    """`router_logits = x W^T (+ b)` in float32, then `moe_ext.route`.

    The router stays in float32 whatever surrounds it: the weight and the expert bias are float32 and refuse to be
    cast to a narrower type (`model.to(torch.bfloat16)` leaves them alone; float64 is allowed), x is converted, and
    autocast is switched off inside. With 256 experts, bfloat16 scores tie or swap experts (Switch Transformer,
    arXiv:2101.03961, "selective precision"). The one thing not controlled here is TF32: on CUDA the product follows
    PyTorch's own switch, which is off by default.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        score, softmax_after, num_groups, topk_groups, group_top, group_fill, renormalize, eps, scale, nonfinite:
            as in `moe_ext.route`.
        bias: add a trained bias to the logits (GPT-OSS).
        expert_bias: keep a float32 buffer [E] that is added to the scores for the selection only and that
            `update_expert_bias` moves (DeepSeek-V3). A buffer: no optimizer, weight decay or gradient touches it.
        jitter: eps of the multiplicative noise U(1 - eps, 1 + eps) on the router's copy of x while training
            (Switch Transformer; 1e-2 there), as `moe_ext.routing.Jitter` draws it. 0 for none.
        init_std: standard deviation of the weight's normal initialisation; None for that of `nn.Linear`,
            U(-1/sqrt(H), 1/sqrt(H)), which is also DeepSeek's.
        device: where to create the parameters. There is no dtype: see above.

    Raises:
        ValueError: `top_k` outside 1..num_experts. What `moe_ext.route` refuses, it refuses in forward.
    """

    expert_bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
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
        bias: bool = False,
        expert_bias: bool = False,
        jitter: float = 0.0,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(hidden_size, num_experts, bias=bias, init_std=init_std, device=device)
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"TopKRouter: top_k must be in 1..num_experts={num_experts}, got {top_k}")
        self.top_k = top_k
        self.score = score
        self.nonfinite = nonfinite
        self.jitter = jitter
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

    def reset_parameters(self) -> None:
        """(Re)initialise the weight; set the biases to zero."""
        super().reset_parameters()
        expert_bias = getattr(self, "expert_bias", None)  # not there yet when it is called for the first time
        if expert_bias is not None:
            nn.init.zeros_(expert_bias)

    def compute_logits(self, x: Tensor) -> Tensor:
        """[T, H] -> router_logits [T, E], float32 (float64 for float64 x), with jitter while training."""
        return self.linear(jittered(x, self.jitter) if self.training and self.jitter > 0 else x)

    @overload
    def forward(self, x: Tensor, *, statistics: Literal[False] = False) -> RouterOutput: ...
    @overload
    def forward(self, x: Tensor, *, statistics: Literal[True]) -> tuple[RouterOutput, RoutingWithStatistics]: ...
    def forward(
        self, x: Tensor, *, statistics: bool = False
    ) -> RouterOutput | tuple[RouterOutput, RoutingWithStatistics]:
        """Route.

        Args:
            x: [T, H], any float dtype.
            statistics: return the sums that balance and z losses are made of as well, formed in the same pass. From
                them `moe_ext.losses.losses_from_statistics` makes the losses, and backward keeps no [T, E] tensor but
                the logits. Not with `score="none"`.
        """
        router_logits = self.compute_logits(x)
        if not statistics:
            return RouterOutput(*route(router_logits, self.top_k, bias=self.expert_bias, **self.options), router_logits)
        routing = route_with_statistics(router_logits, self.top_k, bias=self.expert_bias, **self.options)
        return RouterOutput(routing.topk_weights, routing.topk_ids, router_logits), routing

    def update_expert_bias(self, counts: Tensor, rate: float = 1e-3, mode: UpdateMode = "sign") -> None:
        """Move `expert_bias` against the load `counts` [E]; see `moe_ext.routing.update_expert_bias`."""
        if self.expert_bias is None:
            raise RuntimeError("TopKRouter.update_expert_bias: this router was built with expert_bias=False")
        update_expert_bias(self.expert_bias, counts, rate, mode)

    def extra_repr(self) -> str:
        parts = [f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, top_k={self.top_k}"]
        defaults = (route.__kwdefaults__ or {}) | {"jitter": 0.0}
        values = self.options | {"jitter": self.jitter}
        parts += [f"{name}={value!r}" for name, value in values.items() if value != defaults[name]]
        parts += [f"{name}=True" for name in ("bias", "expert_bias") if getattr(self, name) is not None]
        return ", ".join(parts)
