"""Wrong arguments: refused before any kernel, with the name of the argument, what was wanted and what came."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.ops.recorder import Recorder
from tests.support.backends import Backend

T, H, I, E, K = 6, 8, 4, 5, 2  # noqa: E741 - the letters of the documentation
IDS = torch.tensor([[1, 4], [2, 1], [-1, 3], [4, 2], [1, E], [3, 4]], dtype=torch.int32)
PERM = moe_ext.permute(IDS, E)
SPARSE = torch.eye(T, H).to_sparse()


def valid(function: str) -> dict[str, Any]:
    """Arguments that ``function`` accepts."""
    return {
        "route": {"router_logits": torch.randn(T, E), "top_k": K},
        "expert_choice": {"scores": torch.rand(T, E), "capacity": 2},
        "auction": {"scores": torch.rand(T, E)},
        "sinkhorn": {"logits": torch.randn(T, E)},
        "route_top_p": {"router_logits": torch.randn(T, E), "p": 0.5},
        "noise": {"seed": torch.tensor([1]), "shape": (T, E), "kind": "normal"},
        "soft_dispatch": {"x": torch.randn(2, T, H), "logits": torch.randn(2, T, E)},
        "soft_combine": {"slot_outputs": torch.randn(2, E, H), "logits": torch.randn(2, T, E)},
        "permute": {"topk_ids": IDS, "num_experts": E},
        "slot_positions": {"topk_ids": IDS, "num_experts": E},
        "expert_histogram": {"topk_ids": IDS, "num_experts": E},
        "gather_rows": {"x": torch.randn(T, H), "perm": PERM},
        "grouped_gemm": {
            "rows": torch.randn(T * K, H),
            "weight": torch.randn(E, I, H),
            "expert_offsets": PERM.expert_offsets,
        },
        "combine": {"rows": torch.randn(T * K, H), "topk_weights": torch.rand(T, K), "perm": PERM},
        "fused_experts": {
            "x": torch.randn(T, H),
            "w_gate_up": torch.randn(E, 2 * I, H),
            "w_down": torch.randn(E, H, I),
            "topk_weights": torch.rand(T, K),
            "topk_ids": IDS,
        },
    }[function]


def perm_with(**parts: Tensor) -> moe_ext.Permutation:
    return PERM._replace(**parts)


f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
Bad = tuple[str, dict[str, Any], type[Exception], str]

BAD_ROUTE: list[Bad] = [
    ("route", {"router_logits": [[1.0]]}, TypeError, r"router_logits must be a torch.Tensor, got list"),
    ("route", {"router_logits": None}, TypeError, r"router_logits must be a torch.Tensor, got NoneType"),
    ("route", {"router_logits": torch.ones(T, E, dtype=torch.int64)}, TypeError, r"router_logits .* got torch.int64"),
    ("route", {"router_logits": torch.ones(T, E, dtype=torch.complex64)}, TypeError, r"got torch.complex64"),
    ("route", {"router_logits": SPARSE}, TypeError, r"router_logits must be a dense .* got layout torch.sparse_coo"),
    ("route", {"router_logits": torch.randn(E)}, ValueError, r"\[num_tokens, num_experts\], got shape \(5,\)"),
    ("route", {"router_logits": torch.randn(2, T, E)}, ValueError, r"got shape \(2, 6, 5\)"),
    ("route", {"router_logits": torch.randn(T, 0)}, ValueError, r"at least one expert"),
    ("route", {"top_k": 0}, ValueError, r"top_k must be at least 1, got 0"),
    ("route", {"top_k": -3}, ValueError, r"top_k must be at least 1, got -3"),
    ("route", {"top_k": E + 1}, ValueError, r"top_k must be at most 5 \(num_experts\), got 6"),
    ("route", {"top_k": 2**70}, ValueError, r"top_k must be at most 5"),
    ("route", {"top_k": 2.0}, TypeError, r"top_k must be an int, got float"),
    ("route", {"top_k": True}, TypeError, r"top_k must be an int, got bool"),
    ("route", {"score": "tanh"}, ValueError, r'score must be one of "softmax", "sigmoid", .* got "tanh"'),
    ("route", {"score": None}, TypeError, r"score must be a string, got NoneType"),
    ("route", {"softmax_after": 1}, TypeError, r"softmax_after must be a bool, got int"),
    ("route", {"softmax_after": True, "score": "sigmoid"}, ValueError, r'softmax_after=True needs score="softmax"'),
    ("route", {"bias": torch.zeros(E + 1)}, ValueError, r"bias must be \[num_experts\] = \(5,\), got shape \(6,\)"),
    ("route", {"bias": torch.zeros(1, E)}, ValueError, r"bias must be \[num_experts\], got shape \(1, 5\)"),
    ("route", {"bias": torch.zeros(E, dtype=torch.int32)}, TypeError, r"bias must be float32 .* got torch.int32"),
    ("route", {"bias": torch.zeros(E, device="meta")}, ValueError, r"bias must be on cpu like router_logits, got meta"),
    ("route", {"num_groups": 2}, ValueError, r"num_groups must divide num_experts = 5, got 2"),
    ("route", {"num_groups": 0}, ValueError, r"num_groups must be at least 1, got 0"),
    ("route", {"num_groups": 10}, ValueError, r"num_groups must be at most 5"),
    ("route", {"num_groups": 5, "topk_groups": 6}, ValueError, r"topk_groups must be at most 5 \(num_groups\), got 6"),
    ("route", {"num_groups": 5, "topk_groups": 1}, ValueError, r"top_k must be at most 1, the experts in topk_groups"),
    ("route", {"group_top": 0}, ValueError, r"group_top must be at least 1"),
    ("route", {"group_fill": "nan"}, ValueError, r'group_fill must be one of "-inf", "0", got "nan"'),
    ("route", {"renormalize": None}, TypeError, r"renormalize must be a bool"),
    ("route", {"eps": -1.0}, ValueError, r"eps must be at least 0.0, got -1.0"),
    ("route", {"eps": float("nan")}, ValueError, r"eps must be finite, got nan"),
    ("route", {"scale": float("inf")}, ValueError, r"scale must be finite, got inf"),
    ("route", {"scale": "2"}, TypeError, r"scale must be a number, got str"),
    ("route", {"nonfinite": "min"}, ValueError, r'nonfinite must be one of "propagate", "sanitize", "error"'),
]

BAD_ASSIGN: list[Bad] = [
    ("expert_choice", {"scores": [[1.0]]}, TypeError, r"scores must be a torch.Tensor, got list"),
    ("expert_choice", {"scores": IDS}, TypeError, r"scores must be float32 .* got torch.int32"),
    ("expert_choice", {"scores": torch.rand(E)}, ValueError, r"\[num_tokens, num_experts\], got shape \(5,\)"),
    ("expert_choice", {"scores": torch.rand(T, 0)}, ValueError, r"at least one expert"),
    ("expert_choice", {"capacity": -1}, ValueError, r"capacity must be at least 0, got -1"),
    ("expert_choice", {"capacity": T + 1}, ValueError, r"at most 6 \(the tokens of a group\), got 7"),
    ("expert_choice", {"num_groups": 2, "capacity": 4}, ValueError, r"at most 3 \(the tokens of a group\), got 4"),
    ("expert_choice", {"capacity": 2.0}, TypeError, r"capacity must be an int, got float"),
    ("expert_choice", {"num_groups": 4}, ValueError, r"num_groups must divide num_tokens = 6, got 4"),
    ("expert_choice", {"num_groups": 0}, ValueError, r"num_groups must be at least 1, got 0"),
    ("expert_choice", {"max_experts_per_token": 0}, ValueError, r"max_experts_per_token must be at least 1, got 0"),
    ("expert_choice", {"max_experts_per_token": E + 1}, ValueError, r"must be at most 5 \(num_experts\), got 6"),
    ("expert_choice", {"token_mask": torch.ones(T)}, TypeError, r"token_mask must be bool, got torch.float32"),
    (
        "expert_choice",
        {"token_mask": torch.ones(T + 1).bool()},
        ValueError,
        r"\[num_tokens\] = \(6,\), got shape \(7,\)",
    ),
    ("expert_choice", {"token_mask": torch.ones(T, device="meta").bool()}, ValueError, r"must be on cpu like scores"),
    ("auction", {"scores": None}, TypeError, r"scores must be a torch.Tensor, got NoneType"),
    ("auction", {"scores": torch.rand(2, T, E)}, ValueError, r"got shape \(2, 6, 5\)"),
    ("auction", {"scores": torch.rand(T, 0)}, ValueError, r"at least one expert"),
    ("auction", {"token_mask": IDS}, TypeError, r"token_mask must be bool, got torch.int32"),
    ("auction", {"max_rounds": -1}, ValueError, r"max_rounds must be at least 0, got -1"),
    ("auction", {"max_rounds": True}, TypeError, r"max_rounds must be an int, got bool"),
    ("sinkhorn", {"logits": SPARSE}, TypeError, r"logits must be a dense .* got layout torch.sparse_coo"),
    ("sinkhorn", {"logits": torch.rand(T)}, ValueError, r"logits must be \[num_tokens, num_experts\]"),
    ("sinkhorn", {"logits": torch.rand(T, 0)}, ValueError, r"at least one expert"),
    ("sinkhorn", {"tolerance": -1e-3}, ValueError, r"tolerance must be at least 0.0, got -0.001"),
    ("sinkhorn", {"tolerance": float("nan")}, ValueError, r"tolerance must be finite, got nan"),
    ("sinkhorn", {"max_iterations": 1.5}, TypeError, r"max_iterations must be an int, got float"),
    ("sinkhorn", {"max_iterations": -2}, ValueError, r"max_iterations must be at least 0, got -2"),
]

BAD_TOP_P: list[Bad] = [
    ("route_top_p", {"router_logits": torch.ones(T, E, dtype=torch.int32)}, TypeError, r"router_logits .* torch.int32"),
    ("route_top_p", {"router_logits": torch.randn(E)}, ValueError, r"\[num_tokens, num_experts\], got shape \(5,\)"),
    ("route_top_p", {"router_logits": torch.randn(T, 0)}, ValueError, r"at least one expert"),
    ("route_top_p", {"p": -0.1}, ValueError, r"p must be at least 0.0, got -0.1"),
    ("route_top_p", {"p": 1.5}, ValueError, r"p must be at most 1, a probability, got 1.5"),
    ("route_top_p", {"p": float("nan")}, ValueError, r"p must be finite, got nan"),
    ("route_top_p", {"p": "0.5"}, TypeError, r"p must be a number, got str"),
    ("route_top_p", {"max_k": 0}, ValueError, r"max_k must be at least 1, got 0"),
    ("route_top_p", {"max_k": E + 1}, ValueError, r"max_k must be at most 5 \(num_experts\), got 6"),
    ("route_top_p", {"max_k": 2.0}, TypeError, r"max_k must be an int, got float"),
    ("route_top_p", {"score": "none"}, ValueError, r'score must be one of "softmax", .* got "none"'),
    ("route_top_p", {"renormalize": 1}, TypeError, r"renormalize must be a bool, got int"),
    ("route_top_p", {"eps": -1.0}, ValueError, r"eps must be at least 0.0"),
    ("route_top_p", {"scale": float("inf")}, ValueError, r"scale must be finite"),
    ("route_top_p", {"nonfinite": "min"}, ValueError, r"nonfinite must be one of"),
]

BAD_NOISE: list[Bad] = [
    ("noise", {"seed": 7}, TypeError, r"seed must be a torch.Tensor, got int"),
    ("noise", {"seed": torch.tensor([1.0])}, TypeError, r"seed must be int64, got torch.float32"),
    ("noise", {"seed": torch.tensor(1)}, ValueError, r"seed must be \[1\], got shape \(\)"),
    ("noise", {"seed": torch.tensor([1, 2])}, ValueError, r"seed must be \[1\] = \(1,\), got shape \(2,\)"),
    ("noise", {"shape": 5}, TypeError, r"shape must be a tuple or list of ints, got int"),
    ("noise", {"shape": (2, -1)}, ValueError, r"every size of shape must be at least 0, got -1"),
    ("noise", {"shape": (2.0,)}, TypeError, r"every size of shape must be an int, got float"),
    ("noise", {"kind": "cauchy"}, ValueError, r'kind must be one of "uniform", "normal", "gumbel", got "cauchy"'),
    ("noise", {"dtype": torch.int32}, TypeError, r"dtype must be float32 .* got torch.int32"),
]

BAD_SOFT: list[Bad] = [
    ("soft_dispatch", {"x": torch.randn(T, H)}, ValueError, r"x must be \[batch, num_tokens, hidden_size\], got shape"),
    ("soft_dispatch", {"x": torch.ones(2, T, H).int()}, TypeError, r"x must be float32 .* got torch.int32"),
    ("soft_dispatch", {"logits": torch.randn(2, E, T)}, ValueError, r"logits must be \[batch, num_tokens, num_slots\]"),
    ("soft_dispatch", {"logits": torch.randn(1, T, E)}, ValueError, r"got shape \(1, 6, 5\)"),
    ("soft_dispatch", {"token_mask": torch.ones(2, T)}, TypeError, r"token_mask must be bool, got torch.float32"),
    ("soft_dispatch", {"token_mask": torch.ones(T).bool()}, ValueError, r"token_mask must be \[batch, num_tokens\]"),
    ("soft_combine", {"slot_outputs": torch.randn(2, T, H)}, ValueError, r"logits must be \[batch, num_tokens, num_sl"),
    ("soft_combine", {"logits": torch.zeros(2, T, E, device="meta")}, ValueError, r"logits must be on cpu"),
    ("soft_combine", {"token_mask": torch.ones(2, E).bool()}, ValueError, r"token_mask must be .* = \(2, 6\)"),
]

BAD_PERMUTE_GATHER: list[Bad] = [
    ("permute", {"topk_ids": IDS.float()}, TypeError, r"topk_ids must be int32 or int64, got torch.float32"),
    ("permute", {"topk_ids": IDS.to(torch.int16)}, TypeError, r"got torch.int16"),
    ("permute", {"topk_ids": IDS.flatten()}, ValueError, r"topk_ids must be \[num_tokens, top_k\], got shape \(12,\)"),
    ("permute", {"num_experts": 0}, ValueError, r"num_experts must be at least 1, got 0"),
    ("permute", {"num_experts": 2**31 - 1}, ValueError, r"num_experts must be at most 2147483646"),
    ("permute", {"num_experts": 4.0}, TypeError, r"num_experts must be an int, got float"),
    ("slot_positions", {"topk_ids": IDS.float()}, TypeError, r"topk_ids must be int32 or int64, got torch.float32"),
    ("slot_positions", {"topk_ids": IDS.flatten()}, ValueError, r"topk_ids must be \[num_tokens, top_k\], got shape"),
    ("slot_positions", {"num_experts": 0}, ValueError, r"num_experts must be at least 1, got 0"),
    ("slot_positions", {"order": "random"}, ValueError, r'order must be one of "token", "choice", got "random"'),
    ("slot_positions", {"priority": IDS}, TypeError, r"priority must be float32 .* got torch.int32"),
    ("slot_positions", {"priority": torch.rand(T + 1)}, ValueError, r"priority must be \[num_tokens\] = \(6,\), got"),
    (
        "slot_positions",
        {"priority": torch.rand(T, 1)},
        ValueError,
        r"priority must be \[num_tokens, top_k\] = ",
    ),
    (
        "slot_positions",
        {"priority": torch.rand(T, device="meta")},
        ValueError,
        r"priority must be on cpu",
    ),
    ("slot_positions", {"group_size": 0}, ValueError, r"group_size must be at least 1, got 0"),
    ("slot_positions", {"group_size": 2.0}, TypeError, r"group_size must be an int, got float"),
    ("expert_histogram", {"topk_ids": IDS.flatten()}, ValueError, r"topk_ids must be \[num_tokens, top_k\], got shape"),
    ("expert_histogram", {"num_experts": 2**31}, ValueError, r"num_experts must be at most 2147483646"),
    ("expert_histogram", {"group_size": -1}, ValueError, r"group_size must be at least 1, got -1"),
    ("gather_rows", {"x": torch.randn(T, H).int()}, TypeError, r"x must be float32 .* got torch.int32"),
    ("gather_rows", {"x": torch.randn(H)}, ValueError, r"x must be \[num_tokens, hidden_size\], got shape \(8,\)"),
    ("gather_rows", {"x": torch.randn(T + 1, H)}, ValueError, r"num_tokens = 6 of perm, got shape \(7, 8\)"),
    ("gather_rows", {"perm": None}, TypeError, r"perm must be a moe_ext.Permutation, got NoneType"),
    ("gather_rows", {"perm": (1, 2)}, TypeError, r"perm must be a moe_ext.Permutation, got tuple"),
    ("gather_rows", {"perm": (1, 2, 3)}, TypeError, r"perm.expert_offsets must be a torch.Tensor, got int"),
    ("gather_rows", {"perm": perm_with(row_to_slot=torch.zeros(12))}, TypeError, r"perm.row_to_slot must be int32"),
    (
        "gather_rows",
        {"perm": perm_with(row_to_slot=PERM.row_to_slot[1:])},
        ValueError,
        r"perm.row_to_slot must be \[num_tokens \* top_k\] = \(12,\), got shape \(11,\)",
    ),
    ("gather_rows", {"perm": perm_with(slot_to_row=PERM.slot_to_row.long())}, TypeError, r"slot_to_row must be int32"),
    ("gather_rows", {"x": torch.randn(T, H, device="meta")}, ValueError, r"perm must be on meta like x, got cpu"),
    ("combine", {"rows": torch.randn(T * K - 1, H)}, ValueError, r"rows must be \[num_tokens \* top_k, hidden_size\]"),
    ("combine", {"rows": torch.randn(T, K, H)}, ValueError, r"rows must be .* got shape \(6, 2, 8\)"),
    ("combine", {"topk_weights": torch.rand(T, K + 1)}, ValueError, r"topk_weights must be .* got shape \(6, 3\)"),
    ("combine", {"topk_weights": IDS}, TypeError, r"topk_weights must be float32 .* got torch.int32"),
    ("combine", {"topk_weights": None}, TypeError, r"topk_weights must be a torch.Tensor, got NoneType"),
    (
        "combine",
        {"topk_weights": torch.rand(T, K, device="meta")},
        ValueError,
        r"topk_weights must be on cpu like rows",
    ),
]

BAD_GROUPED_GEMM: list[Bad] = [
    ("grouped_gemm", {"rows": torch.randn(12)}, ValueError, r"rows must be \[num_rows, in_features\]"),
    (
        "grouped_gemm",
        {"weight": torch.randn(E, I, H + 1)},
        ValueError,
        r"weight must be \[num_experts, out_features, in_features\] = \(5, 4, 8\), got shape \(5, 4, 9\)",
    ),
    ("grouped_gemm", {"transposed": True}, ValueError, r"\[num_experts, in_features, out_features\] = \(5, 8, 8\)"),
    ("grouped_gemm", {"weight": torch.randn(E - 1, I, H)}, ValueError, r"= \(5, 4, 8\), got shape \(4, 4, 8\)"),
    ("grouped_gemm", {"weight": torch.randn(I, H)}, ValueError, r"weight must be .* got shape \(4, 8\)"),
    ("grouped_gemm", {"weight": torch.randn(E, I, H).to(bf16)}, TypeError, r"weight must be torch.float32 like rows"),
    (
        "grouped_gemm",
        {"expert_offsets": torch.zeros(E + 1, dtype=torch.int64)},
        TypeError,
        r"expert_offsets must be int32, got torch.int64",
    ),
    ("grouped_gemm", {"expert_offsets": torch.zeros(1, dtype=torch.int32)}, ValueError, r"\[num_experts \+ 1\]"),
    ("grouped_gemm", {"bias": torch.randn(E, H)}, ValueError, r"bias must be \[num_experts, out_features\] = \(5, 4\)"),
    ("grouped_gemm", {"bias": torch.randn(E, I).to(f64)}, TypeError, r"bias must be torch.float32 like rows"),
    (
        "grouped_gemm",
        {"gather": torch.zeros(9, dtype=torch.int64)},
        TypeError,
        r"gather must be int32, got torch.int64",
    ),
    ("grouped_gemm", {"gather": torch.zeros(3, 3, dtype=torch.int32)}, ValueError, r"gather must be \[num_rows\]"),
    ("grouped_gemm", {"transposed": "yes"}, TypeError, r"transposed must be a bool, got str"),
    ("grouped_gemm", {"rows": torch.randn(12, H, device="meta")}, ValueError, r"weight must be on meta like rows"),
]

BAD_FUSED_EXPERTS: list[Bad] = [
    ("fused_experts", {"x": torch.randn(T, H, 1)}, ValueError, r"x must be \[num_tokens, hidden_size\]"),
    ("fused_experts", {"x": torch.randn(T, H).to(torch.float8_e4m3fn)}, TypeError, r"x must be float32 or bfloat16"),
    ("fused_experts", {"x": SPARSE}, TypeError, r"x must be a dense .* got layout torch.sparse_coo"),
    (
        "fused_experts",
        {"x": torch.randn(T, H + 1)},
        ValueError,
        r"w_down must be .* = \(5, 9, 4\), got shape \(5, 8, 4\)",
    ),
    (
        "fused_experts",
        {"w_gate_up": torch.randn(E, I, H)},
        ValueError,
        r"w_gate_up must be \[num_experts, 2 \* intermediate_size, hidden_size\] = \(5, 8, 8\), got shape \(5, 4, 8\)",
    ),
    (
        "fused_experts",
        {"activation": "relu2"},
        ValueError,
        r"w_gate_up must be \[num_experts, intermediate_size, hidden_size\] = \(5, 4, 8\), got shape \(5, 8, 8\)",
    ),
    (
        "fused_experts",
        {"transposed": True},
        ValueError,
        r"w_down must be \[num_experts, intermediate_size, hidden_size\] = \(5, 8, 8\), got shape \(5, 8, 4\)",
    ),
    (
        "fused_experts",
        {"w_gate_up": torch.randn(E, 2 * I, H).to(bf16)},
        TypeError,
        r"w_gate_up .* like x, got torch.bf",
    ),
    ("fused_experts", {"w_down": torch.randn(E, H, I).to(f64)}, TypeError, r"w_down must be torch.float32 like x"),
    ("fused_experts", {"w_down": torch.randn(0, H, I)}, ValueError, r"at least one expert"),
    ("fused_experts", {"w_gate_up": None}, TypeError, r"w_gate_up must be a torch.Tensor, got NoneType"),
    ("fused_experts", {"b_gate_up": torch.randn(E, I)}, ValueError, r"b_gate_up must be .* = \(5, 8\), got shape"),
    (
        "fused_experts",
        {"b_down": torch.randn(E, I)},
        ValueError,
        r"b_down must be \[num_experts, hidden_size\] = \(5, 8\)",
    ),
    ("fused_experts", {"b_down": torch.randn(E, H).to(bf16)}, TypeError, r"b_down must be torch.float32 like x"),
    ("fused_experts", {"topk_ids": IDS[:-1]}, ValueError, r"topk_ids must be \[num_tokens, top_k\] = \(6, 2\)"),
    ("fused_experts", {"topk_ids": IDS.float()}, TypeError, r"topk_ids must be int32 or int64"),
    ("fused_experts", {"topk_weights": torch.rand(T, K + 1)}, ValueError, r"topk_weights must be .* = \(6, 2\)"),
    ("fused_experts", {"topk_weights": IDS}, TypeError, r"topk_weights must be float32"),
    ("fused_experts", {"topk_ids": IDS.to("meta")}, ValueError, r"topk_ids must be on cpu like x, got meta"),
    ("fused_experts", {"activation": "swish"}, ValueError, r'activation must be one of "swiglu", .* got "swish"'),
    ("fused_experts", {"activation": torch.nn.SiLU()}, TypeError, r"activation must be a string, got SiLU"),
    ("fused_experts", {"apply_weights": "both"}, ValueError, r'apply_weights must be one of "output", "input"'),
    ("fused_experts", {"save": "fp4"}, ValueError, r'save must be one of "preact", "fp8", "none", got "fp4"'),
    ("fused_experts", {"workspace_limit": 0}, ValueError, r"workspace_limit must be at least 1, got 0"),
    ("fused_experts", {"workspace_limit": 1e6}, TypeError, r"workspace_limit must be an int, got float"),
    ("fused_experts", {"deterministic": 1}, TypeError, r"deterministic must be a bool, got int"),
    ("fused_experts", {"interleaved": "no"}, TypeError, r"interleaved must be a bool, got str"),
    ("fused_experts", {"limit": 0.0}, ValueError, r"limit must be greater than 0.0, got 0.0"),
    ("fused_experts", {"limit": float("nan")}, ValueError, r"limit must be greater than 0.0, got nan"),
    ("fused_experts", {"alpha": float("inf")}, ValueError, r"alpha must be finite, got inf"),
    ("fused_experts", {"alpha": None}, TypeError, r"alpha must be a number, got NoneType"),
]
BAD = (
    BAD_ROUTE
    + BAD_TOP_P
    + BAD_NOISE
    + BAD_SOFT
    + BAD_ASSIGN
    + BAD_PERMUTE_GATHER
    + BAD_GROUPED_GEMM
    + BAD_FUSED_EXPERTS
)


def described(bad: Bad) -> str:
    function, changes, _, _ = bad
    values = (
        f"{name}={tuple(v.shape)}{v.dtype}" if isinstance(v, Tensor) else f"{name}={v}"[:30]
        for name, v in changes.items()
    )
    return f"{function}({', '.join(values)})"


FUNCTIONS = (
    "route", "route_top_p", "noise", "soft_dispatch", "soft_combine", "expert_choice", "auction", "sinkhorn", "permute",
    "gather_rows", "grouped_gemm", "combine", "fused_experts",
)  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_unchanged_arguments_are_valid(backend: Backend, function: str) -> None:
    getattr(moe_ext, function)(**backend.put(valid(function)))


@pytest.mark.parametrize("bad", BAD, ids=described)
def test_wrong_argument(bad: Bad) -> None:
    function, changes, error, message = bad
    call: Callable[..., Any] = getattr(moe_ext, function)
    with Recorder() as recorder, pytest.raises(error, match=message) as caught:
        call(**{**valid(function), **changes})
    assert str(caught.value).startswith(f"moe_ext.{function}: ")
    assert not recorder.calls


def test_nonfinite_logits_are_named() -> None:
    logits = torch.randn(T, E)
    logits[4, 1] = float("nan")
    logits[5, 0] = float("inf")
    with pytest.raises(ValueError, match=r"router_logits.*\b4\b"):
        moe_ext.route(logits, K, nonfinite="error")
    moe_ext.route(logits[:4], K, nonfinite="error")


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        ("grouped_gemm", {"expert_offsets": torch.tensor([0, 3, 2, 5, 7, 10], dtype=torch.int32)}, "expert_offsets"),
        ("grouped_gemm", {"expert_offsets": torch.tensor([0, 3, 4, 5, 7, 13], dtype=torch.int32)}, "expert_offsets"),
        ("grouped_gemm", {"expert_offsets": torch.tensor([-1, 3, 4, 5, 7, 9], dtype=torch.int32)}, "expert_offsets"),
        ("grouped_gemm", {"gather": torch.full((T * K,), T * K, dtype=torch.int32)}, "gather"),
        ("gather_rows", {"perm": perm_with(row_to_slot=PERM.row_to_slot + T * K)}, "row_to_slot"),
        ("combine", {"perm": perm_with(slot_to_row=PERM.slot_to_row + T * K)}, "slot_to_row"),
        ("fused_experts", {"workspace_limit": 1}, "workspace_limit"),
    ],
)
def test_contents_that_lead_nowhere_are_found_on_the_cpu(
    backend: Backend, function: str, changes: dict[str, Any], message: str
) -> None:
    """And not followed elsewhere."""
    found = backend.is_cpu or message == "workspace_limit"
    with pytest.raises(RuntimeError, match=rf"moe_ext::{function}: {message}") if found else nullcontext():
        getattr(moe_ext, function)(**backend.put({**valid(function), **changes}))


def test_infinite_limit_means_no_clamp(backend: Backend) -> None:
    arguments = backend.put(valid("fused_experts"))
    moe_ext.fused_experts(**arguments, activation="clamped_swiglu", limit=float("inf"))


def test_integers_serve_as_numbers() -> None:
    moe_ext.route(torch.randn(T, E), K, scale=2, eps=0)
