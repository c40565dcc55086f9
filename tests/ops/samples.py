"""Valid calls of every raw op, small enough to run thousands of times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import moe_ext

NUM_TOKENS, HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_EXPERTS, TOP_K = 6, 8, 4, 5, 2
NUM_ROWS = NUM_TOKENS * TOP_K

# Backward ops of which PyTorch can take no further derivative, and the one that writes in place.
ONCE_DIFFERENTIABLE = ("route_backward", "route_with_statistics_backward", "fused_experts_backward")
IN_PLACE = ("grouped_gemm_wgrad_",)
# Ops whose results are no function of a floating-point argument, or are constants by decree.
NOT_DIFFERENTIABLE = (
    "permute", "slot_positions", "expert_histogram", "expert_choice", "auction", "sinkhorn", "noise",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One call: ``torch.ops.moe_ext.<op>(*args)``."""

    op: str
    name: str
    args: tuple[Any, ...]

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.moe_ext, self.op).default

    def with_grad(self) -> tuple[Any, ...]:
        """The arguments again, with every floating-point tensor a leaf that wants a gradient."""
        return tuple(
            arg.detach().clone().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
            for arg in self.args
        )

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def samples(dtype: torch.dtype = torch.float32) -> list[Sample]:
    """Every raw op with several sets of options; the values are the same on every call."""
    generator = torch.Generator().manual_seed(0)
    weights_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def data(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # One expert without rows (0), sentinels on both sides.
    ids = torch.tensor([[1, 4], [2, 1], [-1, 3], [4, 2], [1, NUM_EXPERTS], [3, 4]], dtype=torch.int32)
    perm = moe_ext.permute(ids, NUM_EXPERTS)
    offsets, row_to_slot, slot_to_row = perm
    logits, bias = data(NUM_TOKENS, NUM_EXPERTS), torch.randn(NUM_EXPERTS, generator=generator)
    x, rows, grad_y = data(NUM_TOKENS, HIDDEN_SIZE), data(NUM_ROWS, HIDDEN_SIZE), data(NUM_TOKENS, HIDDEN_SIZE)
    grad_out = data(NUM_ROWS, INTERMEDIATE_SIZE)
    weight = data(NUM_EXPERTS, INTERMEDIATE_SIZE, HIDDEN_SIZE)
    weight_bias = data(NUM_EXPERTS, INTERMEDIATE_SIZE)
    topk_weights = torch.rand(NUM_TOKENS, TOP_K, generator=generator).to(weights_dtype)
    gather = torch.randint(NUM_TOKENS, (NUM_ROWS,), generator=generator, dtype=torch.int32)
    accumulator = torch.randn(NUM_EXPERTS, INTERMEDIATE_SIZE, HIDDEN_SIZE, generator=generator).to(weights_dtype)

    plain = (logits, TOP_K, "softmax", False, None, 1, 1, 1, "-inf", False, 1e-20, 1.0, "propagate")
    grouped = (logits, TOP_K, "sigmoid", False, bias, 5, 3, 2, "0", True, 1e-20, 2.5, "sanitize")
    after = (logits, TOP_K, "softmax", True, None, 1, 1, 1, "-inf", False, 1e-20, 1.0, "propagate")
    backward = (torch.rand_like(topk_weights), logits, ids.clamp(0, NUM_EXPERTS - 1))
    score_sums_grad, z_grad = (torch.randn(size, generator=generator).to(weights_dtype) for size in (NUM_EXPERTS, 1))
    statistics_backward = (
        backward[0], score_sums_grad, z_grad, *backward[1:], "softmax", False, False, 1e-20, 1.0, "propagate",
    )  # fmt: skip
    dispatch = (x.view(2, 3, HIDDEN_SIZE), logits.view(2, 3, NUM_EXPERTS), None, True)
    combine = (grad_y.view(3, 2, -1), rows.view(3, 16, 2)[..., :2], torch.arange(48).view(3, 16) % 5 > 0, False)
    mixed, mixed_statistics = torch.ops.moe_ext.soft_mix(*dispatch)
    y, y_statistics = torch.ops.moe_ext.soft_mix(*combine)
    scores = logits.to(weights_dtype)
    token_mask = torch.arange(NUM_TOKENS) != 3
    found = [
        Sample("expert_choice", "plain", (scores, 2, 1, None, NUM_EXPERTS)),
        Sample("expert_choice", "groups", (scores, 2, 3, token_mask, 2)),
        Sample("auction", "plain", (scores, None, 50)),
        Sample("auction", "mask", (scores, token_mask, 1)),
        Sample("sinkhorn", "plain", (scores, 1e-4, 3)),
        Sample("route", "softmax", plain),
        Sample("route", "grouped", grouped),
        Sample("route", "softmax_after", after),
        Sample("route_backward", "softmax", (*backward, "softmax", False, False, 1e-20, 1.0, "propagate")),
        Sample("route_backward", "sigmoid", (*backward, "sigmoid", False, True, 1e-20, 2.5, "sanitize")),
        Sample("route_with_statistics", "softmax", plain),
        Sample("route_with_statistics", "grouped", grouped),
        Sample("route_with_statistics_backward", "softmax", statistics_backward),
        Sample("route_with_statistics_backward", "only_sums", (None, *statistics_backward[1:])),
        Sample("route_top_p", "softmax", (logits, 0.6, NUM_EXPERTS, "softmax", False, 1e-20, 1.0, "propagate")),
        Sample("route_top_p", "sigmoid", (logits, 1.2, TOP_K, "sigmoid", True, 1e-20, 2.5, "sanitize")),
        Sample("noise", "normal", (torch.tensor([7]), [NUM_TOKENS, 3], "normal")),
        Sample("noise", "uniform", (torch.tensor([-7]), [5], "uniform")),
        Sample("soft_mix", "dispatch", dispatch),
        Sample("soft_mix", "combine_masked", combine),
        Sample("soft_mix_backward", "dispatch", (mixed, *dispatch[:3], mixed, mixed_statistics, True, True, True)),
        Sample("soft_mix_backward", "only_values", (y, *combine[:3], y, y_statistics, False, True, False)),
        Sample("permute", "int32", (ids, NUM_EXPERTS)),
        Sample("permute", "capacity", (ids, NUM_EXPERTS, 2, "choice")),
        Sample("permute", "int64", (ids.long(), NUM_EXPERTS)),
        Sample("slot_positions", "choice", (ids, NUM_EXPERTS)),
        Sample("slot_positions", "token_priority", (ids, NUM_EXPERTS, "token", bias[ids[:, 0].abs() % 5], 4)),
        Sample("slot_positions", "slot_priority", (ids.long(), NUM_EXPERTS, "choice", topk_weights.float(), 2)),
        Sample("expert_histogram", "groups", (ids, NUM_EXPERTS, 4)),
        Sample("gather_rows", "plain", (x, row_to_slot, offsets, TOP_K)),
        Sample("gather_rows_backward", "plain", (rows, slot_to_row)),
        Sample("grouped_gemm", "plain", (rows, weight, offsets, None, None, False)),
        Sample("grouped_gemm", "bias", (rows, weight, offsets, weight_bias, None, False)),
        Sample("grouped_gemm", "transposed", (rows, weight.mT.contiguous(), offsets, weight_bias, None, True)),
        Sample("grouped_gemm", "strided", (rows, weight.mT.contiguous().mT, offsets, None, None, False)),
        Sample("grouped_gemm", "gather", (x, weight, offsets, weight_bias, gather, False)),
        Sample("grouped_gemm_wgrad", "plain", (rows, grad_out, offsets, None, False)),
        Sample("grouped_gemm_wgrad", "transposed", (rows, grad_out, offsets, None, True)),
        Sample("grouped_gemm_wgrad", "gather", (x, grad_out, offsets, gather, False)),
        Sample("grouped_gemm_wgrad_", "plain", (rows, grad_out, offsets, None, False, accumulator)),
        Sample("segment_sum", "plain", (rows, offsets)),
        Sample("combine", "plain", (rows, topk_weights, slot_to_row)),
        Sample("combine_backward", "plain", (grad_y, rows, topk_weights, slot_to_row)),
    ]

    w_gate_up, w_down = (
        data(NUM_EXPERTS, 2 * INTERMEDIATE_SIZE, HIDDEN_SIZE),
        data(NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE),
    )
    w_up = data(NUM_EXPERTS, INTERMEDIATE_SIZE, HIDDEN_SIZE)
    b_gate_up, b_down = data(NUM_EXPERTS, 2 * INTERMEDIATE_SIZE), data(NUM_EXPERTS, HIDDEN_SIZE)
    experts: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], str]] = {
        "plain": ((w_gate_up, w_down, None, None), ("swiglu", 1.702, 7.0, False, False, "output"), "preact"),
        "recompute": ((w_gate_up, w_down, None, None), ("swiglu", 1.702, 7.0, False, False, "output"), "none"),
        "bias": (
            (w_gate_up, w_down, b_gate_up, b_down),
            ("clamped_swiglu", 1.702, 7.0, True, False, "output"),
            "preact",
        ),
        "transposed": (
            (w_gate_up.mT.contiguous(), w_down.mT.contiguous(), None, b_down),
            ("geglu", 1.702, 7.0, False, True, "input"),
            "preact",
        ),
        "ungated": ((w_up, w_down, None, None), ("relu2", 1.702, 7.0, False, False, "output"), "none"),
    }
    for name, ((w1, w2, b1, b2), options, save) in experts.items():
        found.append(Sample("fused_experts", name, (x, w1, w2, topk_weights, ids, b1, b2, *options, save, None, False)))
        if name == "plain":
            bounded = (x, w1, w2, topk_weights, ids, b1, b2, *options, save, None, False, ids.numel())
            found.append(Sample("fused_experts", "max_rows", bounded))
        preact = data(NUM_ROWS, w1.shape[2 if options[4] else 1]) if save == "preact" else x.new_empty(0)
        arguments = (grad_y, x, w1, w2, topk_weights, b1, b2, preact, offsets, slot_to_row, *options, None, False)
        found.append(Sample("fused_experts_backward", name, (*arguments, True, True, True)))
        if name == "plain":
            found.append(Sample("fused_experts_backward", "only_x", (*arguments, True, False, False)))
    return found


Step = Callable[..., Tensor]


def fused_model(x: Tensor, w_router: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Router and experts through :func:`moe_ext.fused_experts`."""
    routing = moe_ext.route(x @ w_router.mT, TOP_K, renormalize=True)
    return moe_ext.fused_experts(x, w_gate_up, w_down, routing.topk_weights, routing.topk_ids)


def stepwise_model(x: Tensor, w_router: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """The same, one op at a time."""
    routing = moe_ext.route(x @ w_router.mT, TOP_K, renormalize=True)
    perm = moe_ext.permute(routing.topk_ids, w_gate_up.shape[0])
    rows = moe_ext.gather_rows(x, perm)
    gate, up = moe_ext.grouped_gemm(rows, w_gate_up, perm.expert_offsets).chunk(2, dim=1)
    rows = moe_ext.grouped_gemm(torch.nn.functional.silu(gate) * up, w_down, perm.expert_offsets)
    return moe_ext.combine(rows, routing.topk_weights, perm)


MODELS: tuple[Step, ...] = (fused_model, stepwise_model)


def model_weights(dtype: torch.dtype = torch.float32, *, requires_grad: bool = True) -> tuple[Tensor, ...]:
    """w_router, w_gate_up and w_down for the models above."""
    generator = torch.Generator().manual_seed(1)
    shapes = (
        (NUM_EXPERTS, HIDDEN_SIZE),
        (NUM_EXPERTS, 2 * INTERMEDIATE_SIZE, HIDDEN_SIZE),
        (NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE),
    )
    return tuple(
        (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype).requires_grad_(requires_grad)
        for shape in shapes
    )


def tokens(num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32, *, requires_grad: bool = True) -> Tensor:
    """``[num_tokens, HIDDEN_SIZE]``, other ones for another seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, HIDDEN_SIZE, generator=generator).to(dtype).requires_grad_(requires_grad)
