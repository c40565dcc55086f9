"""From hidden states to router logits: the first of the three parts of a `Router`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._gate import LinearGate, init_weight
from moe_ext.routing._precision import Float32Module


class LinearLogits(LinearGate):
    """`router_logits = x W^T (+ b)` in float32: the gate of nearly every MoE model.

    On CUDA the product follows PyTorch's own switch for TF32, which is off by default.

    Args:
        hidden_size, num_experts: H, E.
        bias: add a trained bias (GPT-OSS).
        init_std: standard deviation of the weight's normal initialisation; None for that of `nn.Linear`,
            U(-1/sqrt(H), 1/sqrt(H)); 0 for a weight of zeros (Shazeer et al. 2017, arXiv:1701.06538).
        truncate: cut that normal distribution off at two standard deviations (Switch Transformer, arXiv:2101.03961).
        device: where to create the parameters. There is no dtype: they are float32.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        bias: bool = False,
        init_std: float | None = None,
        truncate: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(hidden_size, num_experts, bias=bias, init_std=init_std, truncate=truncate, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] of any float dtype -> [T, E] float32 (float64 for float64 x)."""
        return self.linear(x)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, bias={self.bias is not None}"


class CosineLogits(Float32Module):
    """`router_logits = cos(W x, e_i) / tau`: experts as directions in a space of few dimensions (X-MoE).

    Chi et al. 2022, arXiv:2204.09179: `W [D, H]`, an embedding `e_i [D]` per expert and a learned temperature. Cosines
    keep hidden states from collapsing onto the experts. A zero vector has cosine 0 with everything.

    The released code differs: `CosineLogits(H, E, 16, normalize_input=False, temperature=None)`.

    Args:
        hidden_size, num_experts: H, E.
        routing_dim: D; the paper takes E / 2. None leaves out W: D = H.
        normalize_input: divide W x by its norm.
        normalize_expert: divide e_i by its norm.
        temperature: tau at the start: 0.3 for softmax scores, 0.07 for sigmoid ones; None for no tau at all.
        learn_temperature: make tau a parameter.
        min_temperature: tau is not taken below this (and gets no gradient there).
        eps: norms are not taken below this.
        init_gain: of the orthogonal initialisation of the e_i.
        device: where to create the parameters. There is no dtype: they are float32.

    Raises:
        ValueError: a `temperature` that is not positive.
    """

    projection: nn.Parameter | None
    expert_embeddings: nn.Parameter
    temperature: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        routing_dim: int | None = None,
        *,
        normalize_input: bool = True,
        normalize_expert: bool = True,
        temperature: float | None = 0.3,
        learn_temperature: bool = True,
        min_temperature: float = 1e-4,
        eps: float = 1e-4,
        init_gain: float = 0.32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if temperature is not None and not temperature > 0:
            raise ValueError(f"CosineLogits: temperature must be positive or None, got {temperature}")
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.routing_dim = hidden_size if routing_dim is None else routing_dim
        self.normalize_input = normalize_input
        self.normalize_expert = normalize_expert
        self.init_temperature = temperature
        self.min_temperature = min_temperature
        self.eps = eps
        self.init_gain = init_gain
        float32: dict[str, Any] = {"device": device, "dtype": torch.float32}
        projection = None if routing_dim is None else nn.Parameter(torch.empty(routing_dim, hidden_size, **float32))
        self.register_parameter("projection", projection)
        self.expert_embeddings = nn.Parameter(torch.empty(num_experts, self.routing_dim, **float32))
        if temperature is None:
            self.register_buffer("temperature", None)
        elif learn_temperature:
            self.temperature = nn.Parameter(torch.empty((), **float32))
        else:
            self.register_buffer("temperature", torch.empty((), **float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise: W as `nn.Linear` does, the e_i orthogonally, tau as given."""
        if self.projection is not None:
            init_weight(self.projection, self.hidden_size, None)
        nn.init.orthogonal_(self.expert_embeddings, gain=self.init_gain)
        if self.temperature is not None and self.init_temperature is not None:
            nn.init.constant_(self.temperature, self.init_temperature)

    def cosine(self, x: Tensor) -> Tensor:
        """[T, H] -> the cosines [T, E], before tau, for a loss that has a temperature of its own."""
        with no_autocast(x.device.type):
            x = wide(x)
            if self.projection is not None:
                x = F.linear(x, self.projection.to(x.dtype))
            experts = self.expert_embeddings.to(x.dtype)
            x = F.normalize(x, dim=-1, eps=self.eps) if self.normalize_input else x
            experts = F.normalize(experts, dim=-1, eps=self.eps) if self.normalize_expert else experts
            return F.linear(x, experts)

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] of any float dtype -> [T, E] float32 (float64 for float64 x)."""
        cosine = self.cosine(x)
        if self.temperature is None:
            return cosine
        return cosine / self.temperature.clamp(min=self.min_temperature).to(cosine.dtype)

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, routing_dim={self.routing_dim}, "
            f"normalize_input={self.normalize_input}, normalize_expert={self.normalize_expert}, "
            f"temperature={self.init_temperature}"
        )
