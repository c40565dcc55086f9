"""The routed experts: stacked weights and one call of `moe_ext.fused_experts`."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_ext.nn.activations import is_gated
from moe_ext.nn.hidden_dropout import experts_with_dropout
from moe_ext.nn.quantized_experts import QuantizedExperts
from moe_ext.ops import PackedExperts, fused_experts, quantize_experts
from moe_ext.routing._gate import init_weight


class Experts(nn.Module):
    """E feed-forward networks of the same shape, `y_t = sum_k w_tk FFN_{id_tk}(x_t)`.

    Parameters (G = 2I for gated activations, gate rows first; I for ungated ones):

    * `w_gate_up` [E, G, H] and `w_down` [E, H, I]; with `transposed` [E, H, G] and [E, I, H];
      with `interleaved` gate and up rows alternate (GPT-OSS).
    * `b_gate_up` [E, G] and `b_down` [E, H] with `bias=True`, else None.

    Args:
        hidden_size, intermediate_size, num_experts: H, I, E.
        activation: swiglu, geglu, geglu_tanh, reglu, clamped_swiglu (gated); silu, gelu, gelu_tanh, relu, relu2.
        bias: give both linear maps a bias.
        alpha, limit: of clamped_swiglu.
        interleaved, transposed: layout of the weights, see above.
        apply_weights, save, workspace_limit, deterministic: as in `moe_ext.fused_experts`.
        dropout: share of the hidden values that become 0 while training (Switch Transformer, arXiv:2101.03961, section
            2.4: 0.4 when fine-tuning). Not fused: it costs a copy of the rows, and `save` means nothing then.
        init_std: standard deviation of a normal initialisation; None for that of `nn.Linear`, expert by expert.
        dtype, device: of the parameters.

    Raises:
        ValueError: `interleaved` without a gated activation, or a dropout outside [0, 1).
    """

    b_gate_up: nn.Parameter | None
    b_down: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        *,
        activation: str = "swiglu",
        bias: bool = False,
        alpha: float = 1.702,
        limit: float = 7.0,
        interleaved: bool = False,
        transposed: bool = False,
        apply_weights: Literal["output", "input"] = "output",
        save: Literal["preact", "fp8", "none"] = "preact",
        workspace_limit: int | None = None,
        deterministic: bool = False,
        dropout: float = 0.0,
        init_std: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if interleaved and not is_gated(activation):
            raise ValueError(f"Experts: interleaved=True needs an activation with a gate, got {activation!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"Experts: dropout must be in [0, 1), got {dropout}")
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_experts = num_experts
        self.activation = activation
        self.alpha = alpha
        self.limit = limit
        self.interleaved = interleaved
        self.transposed = transposed
        self.apply_weights = apply_weights
        self.save = save
        self.workspace_limit = workspace_limit
        self.deterministic = deterministic
        self.dropout = dropout
        self.init_std = init_std
        self._packs = False
        self._packed: PackedExperts | None = None
        width = (2 if is_gated(activation) else 1) * intermediate_size
        up_shape, down_shape = (width, hidden_size), (hidden_size, intermediate_size)
        if transposed:
            up_shape, down_shape = up_shape[::-1], down_shape[::-1]
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, *up_shape, **factory))
        self.w_down = nn.Parameter(torch.empty(num_experts, *down_shape, **factory))
        if bias:
            self.b_gate_up = nn.Parameter(torch.empty(num_experts, width, **factory))
            self.b_down = nn.Parameter(torch.empty(num_experts, hidden_size, **factory))
        else:
            self.register_parameter("b_gate_up", None)
            self.register_parameter("b_down", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise the weights; set the biases to zero."""
        init_weight(self.w_gate_up, self.hidden_size, self.init_std)
        init_weight(self.w_down, self.intermediate_size, self.init_std)
        for bias in (self.b_gate_up, self.b_down):
            if bias is not None:
                nn.init.zeros_(bias)

    def cache_packed_weights(self, enabled: bool = True) -> "Experts":
        """Keep a `moe_ext.PackedExperts` of the weights for calls without gradients, or no longer."""
        self._packs = enabled
        self._packed = None
        return self

    def _pack(self) -> PackedExperts | None:
        if not self._packs or torch.compiler.is_compiling():
            return None
        if self._packed is None or not self._packed.is_of(self.w_gate_up, self.w_down, self.transposed):
            self._packed = PackedExperts(self.w_gate_up, self.w_down, transposed=self.transposed)
        return self._packed

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, max_rows: int | None = None) -> Tensor:
        """x [..., H] of T tokens, topk_weights [T, K], topk_ids [T, K] (sentinels contribute nothing) -> [..., H].

        `max_rows`: upper bound of the slots that are no sentinels, see `moe_ext.fused_experts`.
        """
        if self.training and self.dropout > 0:
            tokens = x.reshape(-1, self.hidden_size)
            return experts_with_dropout(self, tokens, topk_weights, topk_ids, self.dropout).reshape(x.shape)
        y = fused_experts(
            x.reshape(-1, self.hidden_size),
            self.w_gate_up,
            self.w_down,
            topk_weights,
            topk_ids,
            activation=self.activation,
            b_gate_up=self.b_gate_up,
            b_down=self.b_down,
            interleaved=self.interleaved,
            transposed=self.transposed,
            apply_weights=self.apply_weights,
            save=self.save,
            workspace_limit=self.workspace_limit,
            deterministic=self.deterministic,
            alpha=self.alpha,
            limit=self.limit,
            packed=self._pack(),
            max_rows=max_rows,
        )
        # As nn.Linear does it: a plain view could be modified in place only with care, and FSDP2 warns about it. Nobody
        # else holds this y.
        return y if x.dim() == 2 else torch.ops.aten._unsafe_view(y, x.shape)

    def quantize(self) -> QuantizedExperts:
        """A copy of these experts with weights in int8, for inference: `moe.experts = moe.experts.quantize()`.

        What is saved for backward and how (`save`, `workspace_limit`, `deterministic`) no longer means anything.
        """
        return QuantizedExperts(
            quantize_experts(self.w_gate_up, self.w_down, transposed=self.transposed),
            activation=self.activation,
            b_gate_up=self.b_gate_up,
            b_down=self.b_down,
            interleaved=self.interleaved,
            apply_weights=self.apply_weights,
            alpha=self.alpha,
            limit=self.limit,
        )

    def extra_repr(self) -> str:
        text = (
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"num_experts={self.num_experts}, activation={self.activation!r}, bias={self.b_down is not None}"
        )
        for name, default in (
            ("interleaved", False),
            ("transposed", False),
            ("apply_weights", "output"),
            ("save", "preact"),
            ("workspace_limit", None),
            ("deterministic", False),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text
