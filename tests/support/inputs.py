"""The tensors of a case: unit variance, weights 1/sqrt(fan_in), in every layout and with any strides.

Values are drawn once in float32 and then rounded, so that a case holds the same numbers in every dtype, layout and
set of strides, up to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from moe_ext.reference import GATED_ACTIVATIONS
from tests.support.cases import Case


@dataclass(frozen=True)
class ExpertInputs:
    """The tensors that ``fused_experts`` takes, by the names of its parameters."""

    x: Tensor
    w_gate_up: Tensor
    w_down: Tensor
    topk_weights: Tensor
    topk_ids: Tensor
    b_gate_up: Tensor | None = None
    b_down: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name: ``fused_experts(**inputs.tensors())``."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def with_tensors(self, **tensors: Tensor) -> "ExpertInputs":
        """A copy with some tensors exchanged."""
        return replace(self, **tensors)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    activation: str = "swiglu",
    bias: bool = False,
    interleaved: bool = False,
    transposed: bool = False,
    seed: int = 0,
) -> ExpertInputs:
    """The inputs of a case. ``topk_weights`` are positive and sum to one; float64 with float64 data, else float32.

    Layouts are those of ``fused_experts``: gate rows first or ``interleaved`` with the up rows, and ``transposed``
    for ``[E, in, out]``. All tensors are contiguous; see ``strided_variants`` for others.
    """
    shape = case.shape
    generator = torch.Generator().manual_seed(seed)
    num_experts, hidden, inter = shape.num_experts, shape.hidden_size, shape.intermediate_size
    parts = 2 if activation in GATED_ACTIVATIONS else 1

    def normal(*sizes: int, fan_in: int = 1) -> Tensor:
        return torch.randn(sizes, generator=generator) * float(fan_in**-0.5)

    x = normal(shape.num_tokens, hidden)
    # One [E, I, ...] per part, so that the concatenated and the interleaved layout hold the same experts.
    w_in = [normal(num_experts, inter, hidden, fan_in=hidden) for _ in range(parts)]
    b_in = [normal(num_experts, inter) for _ in range(parts)]
    w_down = normal(num_experts, hidden, inter, fan_in=inter)
    b_down = normal(num_experts, hidden)
    topk_weights = normal(shape.num_tokens, shape.top_k).softmax(-1)

    w_gate_up, b_gate_up = join_gate_up(w_in, interleaved), join_gate_up(b_in, interleaved)
    if transposed:
        w_gate_up, w_down = w_gate_up.mT.contiguous(), w_down.mT.contiguous()
    return ExpertInputs(
        x=x.to(dtype),
        w_gate_up=w_gate_up.to(dtype),
        w_down=w_down.to(dtype),
        topk_weights=topk_weights.double() if dtype == torch.float64 else topk_weights,
        topk_ids=case.topk_ids(seed),
        b_gate_up=b_gate_up.to(dtype) if bias else None,
        b_down=b_down.to(dtype) if bias else None,
    )


def join_gate_up(parts: list[Tensor], interleaved: bool) -> Tensor:
    """``[E, I, ...]`` parts as one ``[E, len(parts) * I, ...]``, one after the other or row by row in turn."""
    return torch.stack(parts, dim=2).flatten(1, 2) if interleaved else torch.cat(parts, dim=1)


def make_logits(num_tokens: int, num_experts: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """``[T, E]`` router logits of unit variance."""
    return torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided_variants(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of ``tensor`` over and over, each time with other strides or another alignment, and a name for it.

    The gaps are filled with NaN (the largest value for integers), so a kernel that reads them shows it.
    """
    yield "contiguous", tensor.contiguous()
    yield "misaligned", misaligned(tensor)
    yield "padded_rows", padded_rows(tensor)
    yield "every_second_column", every_second_column(tensor)
    if tensor.dim() >= 2:
        yield "transposed_storage", tensor.mT.contiguous().mT
        yield (
            "every_second_row",
            _gaps((*tensor.shape[:-2], 2 * tensor.shape[-2], tensor.shape[-1]), tensor)[..., ::2, :].copy_(tensor),
        )
    if tensor.dim() >= 3:
        yield "first_dim_innermost", tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def misaligned(tensor: Tensor) -> Tensor:
    """Contiguous, but beginning one element after an aligned address."""
    flat = _gaps((tensor.numel() + 1,), tensor)
    return flat[1:].view(tensor.shape).copy_(tensor)


def padded_rows(tensor: Tensor, padding: int = 3) -> Tensor:
    """Rows (of the last dimension) that lie ``padding`` elements apart."""
    return _gaps((*tensor.shape[:-1], tensor.shape[-1] + padding), tensor)[..., : tensor.shape[-1]].copy_(tensor)


def every_second_column(tensor: Tensor) -> Tensor:
    """A stride of 2 in the last dimension."""
    return _gaps((*tensor.shape[:-1], 2 * tensor.shape[-1]), tensor)[..., ::2].copy_(tensor)


def _gaps(sizes: tuple[int, ...], like: Tensor) -> Tensor:
    fill = float("nan") if like.is_floating_point() else torch.iinfo(like.dtype).max
    return torch.full(sizes, fill, dtype=like.dtype, device=like.device)
