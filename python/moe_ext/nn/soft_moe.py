"""Soft MoE: every expert works on weighted means of tokens, so nothing is chosen and nothing dropped."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.nn.experts import Experts
from moe_ext.ops import soft_combine, soft_dispatch
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._random import draw_seed, random


class SlotLogits(Float32Module):
    """What decides how much of each token is in each slot: x [B, m, H] -> logits [B, m, num_slots] in float32.

    Parameters: `weight` [num_slots, H]; `scale` [] with `normalize`, else None.

    Args:
        hidden_size, num_slots: H, and the slots of all experts together.
        normalize, eps, noise_std, init_std: see `SoftMoE`.
        device: where to create the parameters. There is no dtype: they are float32.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        num_slots: int,
        *,
        normalize: bool = True,
        eps: float = 1e-6,
        noise_std: float = 0.0,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_slots = num_slots
        self.normalize = normalize
        self.eps = eps
        self.noise_std = noise_std
        self.init_std = init_std
        float32: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.weight = nn.Parameter(torch.empty(num_slots, hidden_size, **float32))
        self.scale = nn.Parameter(torch.empty((), **float32)) if normalize else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weight; set the scale to 1."""
        nn.init.normal_(self.weight, std=self.hidden_size**-0.5 if self.init_std is None else self.init_std)
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[B, m, H] of any float dtype -> [B, m, num_slots] float32 (float64 for float64 x)."""
        with no_autocast(x.device.type):
            x = wide(x)
            weight = self.weight.to(x.dtype)
            if self.scale is not None:
                # Both factors go to the smaller matrix, and the norm of a token to its row of the product.
                weight = weight * (self.scale.to(x.dtype) * _inverse_norm(weight, self.eps))
            logits = F.linear(x, weight)
            if self.scale is not None:
                logits = logits * _inverse_norm(x, self.eps)
            if self.training and self.noise_std > 0:
                noise = random(draw_seed(x.device), tuple(logits.shape), "normal")
                logits = logits + self.noise_std * noise.to(logits.dtype)
            return logits

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, num_slots={self.num_slots}, normalize={self.normalize}, "
            f"noise_std={self.noise_std}"
        )


def _inverse_norm(x: Tensor, eps: float) -> Tensor:
    return (x.square().sum(dim=-1, keepdim=True) + eps).rsqrt()


class SoftMoE(nn.Module):
    """`Y = C f(D^T X)`, Soft MoE of Puigcerver et al. 2023 (arXiv:2308.00951).

    The logits are `scale * (x / |x|) (slots / |slots|)`, in float32 whatever surrounds them (the paper's section 2.3;
    plain `x slots` without `normalize`). D is their softmax over the tokens of a sequence, C that over all slots.
    Expert e is given slots `e * slots_per_expert` to `(e + 1) * slots_per_expert - 1`. Differentiable throughout and
    balanced by construction, hence without auxiliary loss; a token's output depends on all tokens of its sequence, the
    later ones included, so this is not for causal models.

    Parts: `logits` (`SlotLogits`) and `experts` (`moe_ext.nn.Experts`).

    Args:
        hidden_size, intermediate_size, num_experts: H, I, E.
        slots_per_expert: slots of each expert.
        normalize: L2-normalise tokens and slots, and learn the scale (from 1). The paper's remedy for large H.
        eps: added to squared norms.
        noise_std: standard deviation of the normal noise on the logits while training; 0 for none.
        init_std: standard deviation of the slots' initialisation; None for `1 / sqrt(H)`.
        dtype, device: of the parameters of the experts; the logits' are float32.
        experts: further options of `moe_ext.nn.Experts`, such as `activation` and `bias`.

    Raises:
        ValueError: sizes below 1, a negative `noise_std`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        slots_per_expert: int = 1,
        *,
        normalize: bool = True,
        eps: float = 1e-6,
        noise_std: float = 0.0,
        init_std: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **experts: Any,
    ) -> None:
        super().__init__()
        if slots_per_expert < 1:
            raise ValueError(f"SoftMoE: slots_per_expert must be at least 1, got {slots_per_expert}")
        if not noise_std >= 0:
            raise ValueError(f"SoftMoE: noise_std must be at least 0, got {noise_std}")
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.slots_per_expert = slots_per_expert
        self.logits = SlotLogits(
            hidden_size,
            num_experts * slots_per_expert,
            normalize=normalize,
            eps=eps,
            noise_std=noise_std,
            init_std=init_std,
            device=device,
        )
        self.experts = Experts(hidden_size, intermediate_size, num_experts, dtype=dtype, device=device, **experts)

    @staticmethod
    def default_slots_per_expert(num_tokens: int, num_experts: int, *, capacity_factor: float = 1.0) -> int:
        """As many slots in all as there are tokens in a sequence, times `capacity_factor`; at least 1 per expert."""
        return max(1, round(num_tokens * capacity_factor / num_experts))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Mix, compute, mix back.

        Args:
            x: [B, m, H]: B sequences of m tokens, or [m, H].
            token_mask: [B, m] (or [m]) bool; False for padding, which no slot sees and whose output is zero.

        Returns:
            y: of the shape and dtype of x.
        """
        if x.dim() == 2:
            return self.forward(x.unsqueeze(0), None if token_mask is None else token_mask.unsqueeze(0)).squeeze(0)
        router_logits = self.logits(x)
        slots = soft_dispatch(x, router_logits, token_mask)
        outputs = self.experts(slots, *self._routing(slots))
        return soft_combine(outputs, router_logits, token_mask)

    def _routing(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of 1 and the expert of each slot, [B * s, 1]."""
        ids = torch.arange(self.num_experts, dtype=torch.int32, device=slots.device)
        ids = ids.repeat_interleave(self.slots_per_expert, output_size=slots.shape[1]).repeat(slots.shape[0])
        weights = torch.ones_like(ids, dtype=torch.float64 if slots.dtype == torch.float64 else torch.float32)
        return weights.unsqueeze(1), ids.unsqueeze(1)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, slots_per_expert={self.slots_per_expert}"
