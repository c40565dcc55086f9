"""ReMoE: ReLU instead of top-k, and a regulariser that keeps it sparse."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops._precision import wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._slots import fill_slots


class ReLUSelection(nn.Module):
    """The experts with a positive logit, weighted with it: `y = sum_e relu(z_e) E_e(x)`.

    ReMoE; Wang et al. 2024, arXiv:2412.14711, section 3. Differentiable everywhere but in 0: an expert comes and goes
    with weight 0, so unlike top-k the output is continuous. How many experts a token has is up to the logits;
    `moe_ext.routing.SparsityController` and `moe_ext.routing.relu_sparsity_loss` bring it to what is wanted.

    Args:
        num_experts: E.
        max_experts: K, the slots per token, 1..E; None for E, which loses nothing. A token keeps its best.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(self, num_experts: int, *, max_experts: int | None = None) -> None:
        super().__init__()
        max_experts = num_experts if max_experts is None else max_experts
        _checks.is_int("ReLUSelection", "num_experts", num_experts, low=1)
        _checks.is_int("ReLUSelection", "max_experts", max_experts, low=1, high=num_experts, why=" (num_experts)")
        self.num_experts = num_experts
        self.max_experts = max_experts

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        logits = wide(router_logits)
        return fill_slots(logits > 0, logits, F.relu(logits), self.max_experts)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, max_experts={self.max_experts}"


def relu_sparsity_loss(
    router_logits: Tensor, top_k: float, *, balance: bool = True, token_mask: Tensor | None = None
) -> Tensor:
    """Mean over tokens of `sum_e f_e relu(z_e)`, the L1 regulariser of ReMoE (arXiv:2412.14711, section 3).

    `f_e = E / (top_k T) * (tokens that use expert e)` makes the experts in demand dearer; without `balance` it is 1.
    No gradient flows through f. Multiply by `SparsityController.coefficient` and take the mean over the layers.

    Args:
        router_logits: [T, E]. top_k: experts per token that are aimed at, 0 < top_k <= E.
        balance: see above.
        token_mask: [T] bool, False for tokens to leave out.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    _check_top_k("relu_sparsity_loss", top_k, router_logits.shape[1])
    gates = F.relu(wide(router_logits))
    if token_mask is None:
        num_tokens = gates.new_full((), max(gates.shape[0], 1))
    else:
        gates = gates.masked_fill(~token_mask.reshape(-1, 1), 0)
        num_tokens = token_mask.sum().clamp(min=1).to(gates.dtype)
    per_expert = gates.sum(0) / num_tokens
    if balance:
        usage = (gates.detach() > 0).sum(0) / num_tokens
        per_expert = per_expert * usage * (gates.shape[1] / top_k)
    return per_expert.sum()


def relu_sparsity(router_logits: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
    """The share of (token, expert) pairs that are not used: float64 scalar. Arguments as for `relu_sparsity_loss`."""
    idle = (router_logits.detach() <= 0).double().mean(1)
    if token_mask is None:
        return idle.sum() / max(idle.shape[0], 1)
    token_mask = token_mask.reshape(-1)
    return idle.masked_fill(~token_mask, 0).sum() / token_mask.sum().clamp(min=1)


class SparsityController(Float32Module):
    """The coefficient of `relu_sparsity_loss`, steered so that tokens use `top_k` of E experts on average.

    `coefficient *= factor ** sign((1 - top_k / E) - sparsity)` after each optimizer step (arXiv:2412.14711, section 3):
    too dense makes the regulariser stronger, too sparse weaker. One controller serves all layers.

    Args:
        num_experts, top_k: E, and the experts per token that are aimed at.
        initial: first coefficient. factor: see above; above 1.
        device: of the buffer.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    coefficient: Tensor

    def __init__(
        self,
        num_experts: int,
        top_k: float,
        *,
        initial: float = 1e-8,
        factor: float = 1.2,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = "SparsityController"
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _check_top_k(name, top_k, num_experts)
        _checks.is_number(name, "initial", initial, above=0.0)
        _checks.is_number(name, "factor", factor, above=1.0)
        self.target = 1 - top_k / num_experts
        self.factor = factor
        self.initial = initial
        self.register_buffer("coefficient", torch.empty((), dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the coefficient to its first value."""
        self.coefficient.fill_(self.initial)

    @torch.no_grad()
    def update(self, sparsity: Tensor) -> None:
        """One step; `sparsity` is a scalar, the mean of `relu_sparsity` over all layers and ranks."""
        self.coefficient.mul_(self.factor ** (self.target - sparsity.double()).sign().to(self.coefficient))
        # No factor leads back from 0 or infinity.
        limits = torch.finfo(self.coefficient.dtype)
        self.coefficient.clamp_(min=limits.tiny, max=limits.max)

    def extra_repr(self) -> str:
        return f"target={self.target}, factor={self.factor}"


def _check_top_k(function: str, top_k: float, num_experts: int) -> None:
    _checks.is_number(function, "top_k", top_k, above=0.0)
    if top_k > num_experts:
        raise ValueError(f"moe_ext.{function}: top_k must be at most {num_experts} (num_experts), got {top_k}")
