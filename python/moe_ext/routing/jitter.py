"""Multiplicative noise on what a router sees, while training."""

from typing import Literal

from torch import Tensor, nn

from moe_ext.ops._precision import wide
from moe_ext.routing._random import draw_seed, random

JitterScope = Literal["router", "all"]


class Jitter(nn.Module):
    """`x * u`, u ~ U(1 - eps, 1 + eps) for every element, while training (Switch Transformer, arXiv:2101.03961).

    The gradient of x carries the same u. In evaluation, and for `eps=0`, x comes back as it is.

    Args:
        eps: half the width of the interval, at least 0. 1e-2 in the Switch Transformer.
        scope: who sees the noise. "router": the router's copy alone (Switch Transformer, DeepSpeed). "all": the experts
            as well, as in the public code of Mixtral and DBRX, which multiplies the hidden states in place. Then the
            layer calls `Router.jitter_input` before it routes, and hands its result to router and experts.

    Raises:
        ValueError: a negative `eps` or an unknown `scope`.
    """

    def __init__(self, eps: float = 1e-2, *, scope: JitterScope = "router") -> None:
        super().__init__()
        if eps < 0:
            raise ValueError(f"Jitter: eps must be at least 0, got {eps}")
        if scope not in ("router", "all"):
            raise ValueError(f'Jitter: scope must be "router" or "all", got {scope!r}')
        self.eps = eps
        self.scope = scope

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same: float32 (float64 for float64 x) with `scope="router"`, else in the dtype of x."""
        if not self.training or self.eps == 0:
            return x
        # A router in float32 keeps what bfloat16, whose steps are nearly half of eps, would round away.
        return jittered(x, self.eps) if self.scope == "router" else jittered(x, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, scope={self.scope!r}"


def jittered(x: Tensor, eps: float) -> Tensor:
    """`x * u`, u ~ U(1 - eps, 1 + eps): any shape -> the same, float32 (float64 for float64 x)."""
    return wide(x) * (1 - eps + 2 * eps * random(draw_seed(x.device), tuple(x.shape), "uniform"))
