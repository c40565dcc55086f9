"""Who computes the layer: moe_ext, plain PyTorch in two ways, Hugging Face's Qwen3-MoE block in its three ways, and the
CPU kernels of serving engines (`serving`). On weights as they are, none of them copies any."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.contender import Contender, missing_module
from bench.problem import Layer, Problem, route_plainly
from bench.serving import INT8_BOUNDS, SERVING


def _sort_rows(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of x by expert [R,H], their tokens [R], their weights [R,1] in x's dtype, and the sorted expert ids [R]."""
    expert, slot = topk_ids.flatten().sort(stable=True)
    token = slot // topk_ids.size(1)
    return x[token], token, topk_weights.flatten()[slot].unsqueeze(1).to(x.dtype), expert


def _torch_loop(problem: Problem) -> Layer:
    def layer(x: Tensor) -> Tensor:
        rows, token, weight, expert = _sort_rows(x, *route_plainly(problem, x))
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
        rows, token, weight, expert = _sort_rows(x, *route_plainly(problem, x))
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


def _moe_ext_packed(problem: Problem) -> Layer:
    moe_ext: Any = importlib.import_module("moe_ext")
    packed = moe_ext.PackedExperts(problem.w_gate_up, problem.w_down).prepare()

    def layer(x: Tensor) -> Tensor:
        routing = moe_ext.route(F.linear(x, problem.w_router), problem.shape.top_k, renormalize=True)
        y: Tensor = moe_ext.fused_experts(
            x, problem.w_gate_up, problem.w_down, routing.topk_weights, routing.topk_ids, packed=packed
        )
        return y

    return layer


def _moe_ext_int8(problem: Problem) -> Layer:
    moe_ext: Any = importlib.import_module("moe_ext")
    experts = moe_ext.quantize_experts(problem.w_gate_up.detach(), problem.w_down.detach())

    def layer(x: Tensor) -> Tensor:
        routing = moe_ext.route(F.linear(x, problem.w_router), problem.shape.top_k, renormalize=True)
        y: Tensor = moe_ext.fused_experts_int8(x, experts, routing.topk_weights, routing.topk_ids)
        return y

    return layer


def _weight_bytes(problem: Problem) -> int:
    return (problem.w_gate_up.numel() + problem.w_down.numel()) * problem.w_down.element_size()


def _eager_scratch(problem: Problem, mode: str) -> tuple[int, str]:
    hit = int((problem.expert_load() > 0).sum())
    return (hit * _weight_bytes(problem) if mode == "fwdbwd" else 0), "zero-filled full-size weight gradients"


def _batched_scratch(problem: Problem, mode: str) -> tuple[int, str]:
    shape = problem.shape
    return shape.num_rows * shape.expert_numel * problem.w_down.element_size(), "weights copied for each row"


_no_moe_ext: Final = partial(missing_module, "moe_ext")
_no_hugging_face: Final = partial(missing_module, "transformers.models.qwen3_moe.modeling_qwen3_moe")
_ALL: Final = (
    Contender("moe_ext", "moe_ext.route + moe_ext.fused_experts", _moe_ext("preact"), _no_moe_ext, ours=True),
    Contender(
        "moe_ext_recompute", 'the same with save="none"', _moe_ext("none"), _no_moe_ext, ours=True, default=False
    ),
    Contender(
        "moe_ext_packed",
        "the same on moe_ext.PackedExperts",
        _moe_ext_packed,
        partial(missing_module, "moe_ext", "PackedExperts"),
        ours=True,
        weights="packed",
        forward_only=True,
    ),
    Contender(
        "moe_ext_int8",
        "moe_ext.quantize_experts, moe_ext.route + moe_ext.fused_experts_int8",
        _moe_ext_int8,
        partial(missing_module, "moe_ext", "fused_experts_int8"),
        ours=True,
        weights="int8",
        forward_only=True,
        bounds=INT8_BOUNDS,
    ),
    Contender("torch_loop", "sort by expert, F.linear for each expert, index_add", _torch_loop),
    Contender("torch_grouped_mm", "sort by expert, F.grouped_mm, index_add", _torch_grouped_mm),
    Contender(
        "hf_eager",
        "transformers Qwen3-MoE block, eager",
        _hugging_face("eager"),
        _no_hugging_face,
        scratch=_eager_scratch,
    ),
    Contender("hf_grouped_mm", "the same, grouped_mm experts", _hugging_face("grouped_mm"), _no_hugging_face),
    Contender(
        "hf_batched_mm",
        "the same, batched_mm experts",
        _hugging_face("batched_mm"),
        _no_hugging_face,
        scratch=_batched_scratch,
    ),
    *SERVING,
)
CONTENDERS: Final[dict[str, Contender]] = {contender.name: contender for contender in _ALL}
