"""Experts that cost nothing: null, copy and constant (AdaMoE, MoE++)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide


class ZeroComputationExperts(nn.Module):
    """Experts beside the E real ones that need no feed-forward network; their part of the output is formed here.

    Null experts give 0 (AdaMoE; Zeng et al. 2024, arXiv:2406.13233: a token that prefers them uses fewer real ones),
    copy experts x, and a constant expert `a_1 x + a_2 v` with `a = softmax(W_c x)` and v trained (MoE++; Jin et al.
    2024, arXiv:2410.07348). The router is one over `total_experts`: 0..E-1 are the real ones, then come null, copy and
    constant ones. They take part in top-k and in balance losses like all others::

        topk_weights, topk_ids, router_logits = router(x)
        topk_weights = zero.renormalize(topk_weights, topk_ids)  # AdaMoE
        y = moe_ext.fused_experts(x, w_gate_up, w_down, topk_weights, zero.real_ids(topk_ids))
        y = y + zero(x, topk_weights, topk_ids)

    Null experts beside a shared one let easy tokens use the shared one alone.

    Args:
        num_experts: E, the real ones. hidden_size: H.
        num_null, num_copy, num_constant: how many of each kind.
        dtype, device: of the constant experts' parameters; there are none without constant experts.

    Raises:
        ValueError: a negative number, or none of any kind.
    """

    vectors: nn.Parameter | None
    gates: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        *,
        num_null: int = 0,
        num_copy: int = 0,
        num_constant: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = "ZeroComputationExperts"
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _checks.is_int(name, "hidden_size", hidden_size, low=1)
        for label, value in (("num_null", num_null), ("num_copy", num_copy), ("num_constant", num_constant)):
            _checks.is_int(name, label, value, low=0)
        if num_null + num_copy + num_constant == 0:
            raise ValueError(
                f"moe_ext.{name}: num_null, num_copy and num_constant are all 0, so there is nothing to do"
            )
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.num_null = num_null
        self.num_copy = num_copy
        self.num_constant = num_constant
        self.register_parameter("vectors", None)
        self.register_parameter("gates", None)
        if num_constant:
            self.vectors = nn.Parameter(torch.empty(num_constant, hidden_size, dtype=dtype, device=device))
            self.gates = nn.Parameter(torch.empty(num_constant, 2, hidden_size, dtype=dtype, device=device))
        self.reset_parameters()

    @property
    def total_experts(self) -> int:
        """How many experts the router chooses from."""
        return self.num_experts + self.num_null + self.num_copy + self.num_constant

    def reset_parameters(self) -> None:
        """(Re)initialise: v from N(0, 1), the gates like `nn.Linear`."""
        if self.vectors is not None and self.gates is not None:
            bound = self.hidden_size**-0.5
            nn.init.normal_(self.vectors)
            nn.init.uniform_(self.gates, -bound, bound)

    def real_ids(self, topk_ids: Tensor) -> Tensor:
        """The ids with -1 in place of what needs no computation: [T, K] -> [T, K]."""
        return topk_ids.masked_fill(topk_ids >= self.num_experts, -1)

    def renormalize(self, topk_weights: Tensor, topk_ids: Tensor, *, eps: float = 1e-20) -> Tensor:
        """Weights divided by (their sum without null experts + eps), and 0 for null experts: [T, K] -> [T, K].

        AdaMoE, arXiv:2406.13233: choosing a null expert does not make the others count less. A token that chose
        nothing else has weights 0.
        """
        null = (topk_ids < 0) | ((topk_ids >= self.num_experts) & (topk_ids < self.num_experts + self.num_null))
        topk_weights = topk_weights.masked_fill(null, 0)
        return topk_weights / (topk_weights.sum(1, keepdim=True) + eps)

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        """What these experts add to the output.

        Args:
            x: [T, H]. topk_weights: [T, K] float. topk_ids: [T, K] int32 or int64, in 0..total_experts-1 or sentinels.

        Returns:
            [T, H] in the dtype of x.
        """
        if x.shape[-1] != self.hidden_size or x.dim() != 2:
            raise ValueError(
                f"moe_ext.ZeroComputationExperts: x must be [T, {self.hidden_size}], got shape {tuple(x.shape)}"
            )
        first_copy = self.num_experts + self.num_null
        first_constant = first_copy + self.num_copy
        with no_autocast(x.device.type):
            tokens, weights = wide(x), topk_weights.to(wide(x[:0]).dtype)
            is_copy = (topk_ids >= first_copy) & (topk_ids < first_constant)
            share_of_x = weights.masked_fill(~is_copy, 0).sum(1)
            if self.vectors is None or self.gates is None:
                return (share_of_x[:, None] * tokens).to(x.dtype)

            # [T, K, C]: the weight of each constant expert, summed over slots before anything of width H is formed.
            number = torch.arange(self.num_constant, device=x.device)
            is_constant = (topk_ids - first_constant)[:, :, None] == number
            share = (weights[:, :, None] * is_constant).sum(1)
            mix = F.linear(tokens, self.gates.to(tokens.dtype).flatten(0, 1)).unflatten(1, (-1, 2)).softmax(dim=-1)
            share_of_x = share_of_x + (share * mix[..., 0]).sum(1)
            constant = (share * mix[..., 1]) @ self.vectors.to(tokens.dtype)
            return (share_of_x[:, None] * tokens + constant).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, num_null={self.num_null}, num_copy={self.num_copy}, "
            f"num_constant={self.num_constant}"
        )
