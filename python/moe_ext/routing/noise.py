"""Noise on router logits, while training: the second of the three parts of a `Router`."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._random import Kind, draw_seed, random


class Noise(nn.Module):
    """`router_logits + amount * sample`, fresh in every forward, while training or always."""

    kind: Kind = "normal"

    def __init__(self, *, at_eval: bool = False) -> None:
        super().__init__()
        self.at_eval = at_eval

    def amount(self, router_logits: Tensor, x: Tensor, **side: Any) -> Tensor | float:
        """What a standard sample is multiplied by; broadcasts to [T, E]."""
        raise NotImplementedError

    def forward(self, router_logits: Tensor, x: Tensor, *, sample: Tensor | None = None, **side: Any) -> Tensor:
        """[T, E], [T, H] -> [T, E] float32 (float64 for float64 logits).

        `sample` [T, E] takes the place of the random numbers, which a checkpointed forward draws again as they were.
        """
        if not (self.training or self.at_eval):
            return router_logits
        return self.with_amount(router_logits, x, sample=sample, **side)[0]

    def with_amount(
        self, router_logits: Tensor, x: Tensor, *, sample: Tensor | None = None, **side: Any
    ) -> tuple[Tensor, Tensor | float]:
        """What `forward` returns, and the standard deviation or scale of the noise: also where there is none."""
        with no_autocast(router_logits.device.type):
            router_logits = wide(router_logits)
            amount = self.amount(router_logits, x, **side)
            if not (self.training or self.at_eval):
                return router_logits, amount
            if sample is None:
                sample = random(draw_seed(router_logits.device), tuple(router_logits.shape), self.kind)
            return router_logits + amount * sample.to(router_logits.dtype), amount

    def extra_repr(self) -> str:
        return f"at_eval={self.at_eval}"


class GaussianNoise(Noise):
    """`z + std * n`, n ~ N(0, 1): V-MoE has a std of 1/E (Riquelme et al. 2021, arXiv:2106.05974).

    For the loss on the smooth load see `return_noise` of `Router.forward`.

    Args:
        std: of the noise; None for 1/E.
        at_eval: noise in evaluation, too.

    Raises:
        ValueError: a negative `std`.
    """

    def __init__(self, std: float | None = None, *, at_eval: bool = False) -> None:
        super().__init__(at_eval=at_eval)
        if std is not None and std < 0:
            raise ValueError(f"GaussianNoise: std must be at least 0, got {std}")
        self.std = std

    def amount(self, router_logits: Tensor, x: Tensor, **side: Any) -> Tensor | float:
        return 1 / router_logits.shape[1] if self.std is None else self.std

    def extra_repr(self) -> str:
        return f"std={'1/num_experts' if self.std is None else self.std}, {super().extra_repr()}"


class GumbelNoise(Noise):
    """`z + scale * g`, g standard Gumbel: the top k of it are a sample without replacement from softmax(z / scale).

    Args:
        scale: of the noise, at least 0. at_eval: noise in evaluation, too.

    Raises:
        ValueError: a negative `scale`.
    """

    kind: Kind = "gumbel"

    def __init__(self, scale: float = 1.0, *, at_eval: bool = False) -> None:
        super().__init__(at_eval=at_eval)
        if scale < 0:
            raise ValueError(f"GumbelNoise: scale must be at least 0, got {scale}")
        self.scale = scale

    def amount(self, router_logits: Tensor, x: Tensor, **side: Any) -> Tensor | float:
        return self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}, {super().extra_repr()}"


class LearnedNoise(Noise):
    """`z + softplus(r(x)) * n`, n ~ N(0, 1), where r is learned (Shazeer et al. 2017, arXiv:1701.06538).

    The sum is a reparameterised sample, so r has a gradient, also from the loss on the smooth load, for which see
    `return_noise` of `Router.forward`. With r = 0, where the paper starts, the deviation is ln 2.

    Args:
        raw_std: r, any logits module: `LinearLogits(H, E, init_std=0)` in the paper, `TaskLogits` for one per task.
        min_std: added to the softplus; 1e-2 in public ports.
        at_eval: noise in evaluation, too, as in the public code of Mod-Squad.

    Raises:
        ValueError: a negative `min_std`.
    """

    def __init__(self, raw_std: nn.Module, *, min_std: float = 0.0, at_eval: bool = False) -> None:
        super().__init__(at_eval=at_eval)
        if min_std < 0:
            raise ValueError(f"LearnedNoise: min_std must be at least 0, got {min_std}")
        self.raw_std = raw_std
        self.min_std = min_std

    @property
    def side_inputs(self) -> tuple[str, ...]:
        return getattr(self.raw_std, "side_inputs", ())

    def std(self, x: Tensor, **side: Any) -> Tensor:
        """[T, H] -> the standard deviation of the noise [T, E], float32 (float64 for float64 x)."""
        with no_autocast(x.device.type):
            return F.softplus(self.raw_std(x, **side)) + self.min_std

    def amount(self, router_logits: Tensor, x: Tensor, **side: Any) -> Tensor | float:
        return self.std(x, **side).to(router_logits.dtype)

    def extra_repr(self) -> str:
        return f"min_std={self.min_std}, {super().extra_repr()}"
