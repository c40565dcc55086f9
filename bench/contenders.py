"""Who computes the layer: moe_ext, plain PyTorch in two ways, and Hugging Face's Qwen3-MoE block in its three ways.

Each builds a callable x [T,H] -> y [T,H] on the problem's own weights (no copies), router included. What a contender
cannot do within a stated number of bytes, it says instead of doing it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.machine import without_folders
from bench.problem import Problem

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """`scratch(problem, mode)` is (bytes, what for) of hidden per-call traffic that rules out large shapes."""

    name: str
    what: str
    build: Callable[[Problem], Layer]
    module: str | None = None
    ours: bool = False
    default: bool = True
    scratch: Callable[[Problem, str], tuple[int, str]] | None = None

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None."""
        if self.module is None:
            return None
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            return without_folders(f"{self.module} cannot be imported: {error}")
        return None


def _route(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """topk_weights [T,K] float32 and topk_ids [T,K] in plain PyTorch."""
    probabilities = F.linear(x, problem.w_router).softmax(dim=-1, dtype=torch.float32)
    topk_weights, topk_ids = probabilities.topk(problem.shape.top_k, dim=-1)
    return topk_weights / topk_weights.sum(dim=-1, keepdim=True), topk_ids


def _sort_rows(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of x by expert [R,H], their tokens [R], their weights [R,1] in x's dtype, and the sorted expert ids [R]."""
    expert, slot = topk_ids.flatten().sort(stable=True)
    token = slot // topk_ids.size(1)
    return x[token], token, topk_weights.flatten()[slot].unsqueeze(1).to(x.dtype), expert


def _torch_loop(problem: Problem) -> Layer:
    def layer(x: Tensor) -> Tensor:
        rows, token, weight, expert = _sort_rows(x, *_route(problem, x))
        counts = torch.bincount(expert, minlength=problem.shape.num_experts).tolist()
        # unbind, not w[e]: the backward of indexing zero-fills a full-size gradient for every expert.
        parts = zip(torch.split(rows, counts), problem.w_gate_up.unbind(), problem.w_down.unbind(), strict=True)
        outs = []
        for part, w_gate_up, w_down in parts:
            if len(part):
                gate, up = F.linear(part, w_gate_up).chunk(2, dim=-1)
                outs.append(F.linear(F.silu(gate) * up, w_down))
        return torch.zeros_like(x).index_add_(0, token, torch.cat(outs) * weight)

    return layer


def _torch_grouped_mm(problem: Problem) -> Layer:
    def layer(x: Tensor) -> Tensor:
        rows, token, weight, expert = _sort_rows(x, *_route(problem, x))
        counts = torch.bincount(expert, minlength=problem.shape.num_experts)
        offsets = counts.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(rows, problem.w_gate_up.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
        out = F.grouped_mm(F.silu(gate) * up, problem.w_down.transpose(1, 2), offs=offsets)
        return torch.zeros_like(x).index_add_(0, token, out * weight)

    return layer


def _hugging_face(implementation: str) -> Callable[[Problem], Layer]:
    def build(problem: Problem) -> Layer:
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        shape = problem.shape
        config: Any = Qwen3MoeConfig(
            hidden_size=shape.hidden_size,
            moe_intermediate_size=shape.intermediate_size,
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k,
            norm_topk_prob=True,
            hidden_act="silu",
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            block: Any = Qwen3MoeSparseMoeBlock(config)
        block.gate.weight = problem.w_router
        block.experts.gate_up_proj = problem.w_gate_up
        block.experts.down_proj = problem.w_down
        return lambda x: block(x.unsqueeze(0)).squeeze(0)

    return build


def _moe_ext(save: str) -> Callable[[Problem], Layer]:
    def build(problem: Problem) -> Layer:
        moe_ext: Any = importlib.import_module("moe_ext")

        def layer(x: Tensor) -> Tensor:
            routing = moe_ext.route(F.linear(x, problem.w_router), problem.shape.top_k, renormalize=True)
            y: Tensor = moe_ext.fused_experts(
                x, problem.w_gate_up, problem.w_down, routing.topk_weights, routing.topk_ids, save=save
            )
            return y

        return layer

    return build


def _weight_bytes(problem: Problem) -> int:
    return (problem.w_gate_up.numel() + problem.w_down.numel()) * problem.w_down.element_size()


def _eager_scratch(problem: Problem, mode: str) -> tuple[int, str]:
    hit = int((problem.expert_load() > 0).sum())
    return (hit * _weight_bytes(problem) if mode == "fwdbwd" else 0), "zero-filled full-size weight gradients"


def _batched_scratch(problem: Problem, mode: str) -> tuple[int, str]:
    shape = problem.shape
    return shape.num_rows * shape.expert_numel * problem.w_down.element_size(), "weights copied for each row"


_HF_MODULE: Final = "transformers.models.qwen3_moe.modeling_qwen3_moe"
_ALL: Final = (
    Contender("moe_ext", "moe_ext.route + moe_ext.fused_experts", _moe_ext("preact"), "moe_ext", ours=True),
    Contender(
        "moe_ext_recompute",
        'the same with save="none"',
        _moe_ext("none"),
        "moe_ext",
        ours=True,
        default=False,
    ),
    Contender("torch_loop", "sort by expert, F.linear for each expert, index_add", _torch_loop),
    Contender("torch_grouped_mm", "sort by expert, F.grouped_mm, index_add", _torch_grouped_mm),
    Contender(
        "hf_eager", "transformers Qwen3-MoE block, eager", _hugging_face("eager"), _HF_MODULE, scratch=_eager_scratch
    ),
    Contender("hf_grouped_mm", "the same, grouped_mm experts", _hugging_face("grouped_mm"), _HF_MODULE),
    Contender(
        "hf_batched_mm",
        "the same, batched_mm experts",
        _hugging_face("batched_mm"),
        _HF_MODULE,
        scratch=_batched_scratch,
    ),
)
CONTENDERS: Final[dict[str, Contender]] = {contender.name: contender for contender in _ALL}


def exclusion(contender: Contender, problem: Problem, mode: str, byte_limit: int) -> str | None:
    """Why the contender sits this cell out, or None."""
    missing = contender.unavailable()
    if missing or contender.scratch is None:
        return missing
    size, purpose = contender.scratch(problem, mode)
    if size <= byte_limit:
        return None
    return f"would move {size / 2**30:.1f} GiB per call ({purpose}); the limit is {byte_limit / 2**30:g} GiB"
