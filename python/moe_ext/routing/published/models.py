"""Routers of released checkpoints, as their public code computes them, but always in float32.

Every function takes H, E and K first, and the constants of the released model are the defaults.
"""

from typing import Any, Literal

import torch

from moe_ext.routing.jitter import Jitter, JitterScope
from moe_ext.routing.logits import LinearLogits
from moe_ext.routing.router import Router
from moe_ext.routing.selection import TopK
from moe_ext.routing.sparse_mixer import SparseMixer
from moe_ext.routing.weights import NormalizeWeights, Reweigh

Device = torch.device | str | None


def _linear_top_k(
    hidden_size: int,
    num_experts: int,
    top_k: int,
    *,
    device: Device,
    jitter: float = 0.0,
    jitter_scope: JitterScope = "all",
    gate_bias: bool = False,
    **options: Any,
) -> Router:
    """A linear gate, and `TopK` with these options: what most models have."""
    return Router(
        LinearLogits(hidden_size, num_experts, bias=gate_bias, device=device),
        TopK(num_experts, top_k, device=device, **options),
        jitter=_jitter(jitter, jitter_scope),
    )


def _jitter(eps: float, scope: JitterScope) -> Jitter | None:
    return Jitter(eps, scope=scope) if eps else None


def mixtral(
    hidden_size: int,
    num_experts: int = 8,
    top_k: int = 2,
    *,
    jitter: float = 0.0,
    jitter_scope: JitterScope = "all",
    device: Device = None,
) -> Router:
    """Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088): softmax over the chosen logits, nobody dropped.

    Softmax, top-k and a division by the sum, as public code has it, is the same. Hunyuan-A13B routes so, too.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        jitter: eps of the noise on the input while training; 0 in the released configuration.
        jitter_scope: "all": experts see the jittered input, as in public code. "router": they don't.
        device: of the parameters.
    """
    return _linear_top_k(
        hidden_size,
        num_experts,
        top_k,
        softmax_after=True,
        jitter=jitter,
        jitter_scope=jitter_scope,
        device=device,
    )


def minimax(
    hidden_size: int,
    num_experts: int = 32,
    top_k: int = 2,
    *,
    jitter: float = 0.0,
    jitter_scope: JitterScope = "all",
    device: Device = None,
) -> Router:
    """MiniMax-Text-01 (arXiv:2501.08313): as `mixtral`, over 32 experts."""
    return mixtral(hidden_size, num_experts, top_k, jitter=jitter, jitter_scope=jitter_scope, device=device)


def dbrx(
    hidden_size: int,
    num_experts: int = 16,
    top_k: int = 4,
    *,
    p: float | None = 1.0,
    jitter: float = 0.0,
    jitter_scope: JitterScope = "all",
    device: Device = None,
) -> Router:
    """DBRX (Databricks 2024): softmax, top-4, divided by the p-norm.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        p: `moe_normalize_expert_weights`: 1 in the released configuration; None for no division.
        jitter: `moe_jitter_eps`.
        jitter_scope: "all": experts see the jittered input, as in public code. "router": they don't.
        device: of the parameters.
    """
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        NormalizeWeights(TopK(num_experts, top_k), p=p),
        jitter=_jitter(jitter, jitter_scope),
    )


def qwen2_moe(
    hidden_size: int, num_experts: int = 60, top_k: int = 4, *, renormalize: bool = False, device: Device = None
) -> Router:
    """Qwen1.5-MoE-A2.7B, and Qwen2-57B-A14B with other sizes (arXiv:2407.10671): softmax, top-k, not renormalised.

    `renormalize` is their `norm_topk_prob`.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, renormalize=renormalize, device=device)


def qwen3_moe(
    hidden_size: int, num_experts: int = 128, top_k: int = 8, *, renormalize: bool = True, device: Device = None
) -> Router:
    """Qwen3-30B-A3B and Qwen3-235B-A22B (arXiv:2505.09388): softmax, top-8 of 128, renormalised.

    `renormalize` is their `norm_topk_prob`.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, renormalize=renormalize, device=device)


def olmoe(
    hidden_size: int, num_experts: int = 64, top_k: int = 8, *, renormalize: bool = False, device: Device = None
) -> Router:
    """OLMoE-1B-7B (Muennighoff et al. 2024, arXiv:2409.02060): softmax, top-8 of 64, not renormalised.

    `renormalize` is its `norm_topk_prob`.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, renormalize=renormalize, device=device)


def jamba(hidden_size: int, num_experts: int = 16, top_k: int = 2, *, device: Device = None) -> Router:
    """Jamba (Lieber et al. 2024, arXiv:2403.19887): softmax, top-2 of 16, not renormalised."""
    return _linear_top_k(hidden_size, num_experts, top_k, device=device)


def deepseek_moe(
    hidden_size: int, num_experts: int = 64, top_k: int = 6, *, renormalize: bool = False, device: Device = None
) -> Router:
    """DeepSeekMoE 16B (Dai et al. 2024, arXiv:2401.06066): softmax, top-6 of 64 routed experts, not renormalised.

    `renormalize` is its `norm_topk_prob`. Two shared experts go with it.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, renormalize=renormalize and top_k > 1, device=device)


def deepseek_v2(
    hidden_size: int,
    num_experts: int = 160,
    top_k: int = 6,
    *,
    num_groups: int = 8,
    topk_groups: int = 3,
    scale: float = 16.0,
    renormalize: bool = False,
    scale_renormalized: bool = False,
    group_fill: Literal["-inf", "0"] = "-inf",
    device: Device = None,
) -> Router:
    """DeepSeek-V2 (arXiv:2405.04434): softmax, the best 3 of 8 groups by their best expert, top-6 in those, times 16.

    A token reaches no more than `topk_groups` devices when each holds a group. V2-Lite is `num_experts=64,
    num_groups=1, topk_groups=1, scale=1.0` (its topk_method is "greedy").

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        num_groups, topk_groups: groups, and how many of them a token may use.
        scale: `routed_scaling_factor`.
        renormalize: `norm_topk_prob`; left out with `top_k=1`, as in the released code.
        scale_renormalized: False: renormalised weights aren't scaled, as in the released code.
        group_fill: "0" is what the released code ranks the experts of other groups as. It makes a difference only
            where a softmax underflows to 0.
        device: of the parameters.
    """
    return _linear_top_k(
        hidden_size,
        num_experts,
        top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_fill=group_fill,
        renormalize=renormalize and top_k > 1,
        scale=scale,
        scale_renormalized=scale_renormalized,
        device=device,
    )


def deepseek_v3(
    hidden_size: int,
    num_experts: int = 256,
    top_k: int = 8,
    *,
    num_groups: int = 8,
    topk_groups: int = 4,
    score: Literal["sigmoid", "softmax"] = "sigmoid",
    expert_bias: bool = True,
    renormalize: bool | None = None,
    scale: float = 2.5,
    eps: float = 1e-20,
    group_fill: Literal["-inf", "0"] = "-inf",
    device: Device = None,
) -> Router:
    """DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, a bias that only selects, groups, times 2.5.

    Groups are ranked by the sum of their best two biased scores, or by the best score without a bias. Move the bias
    with `router.update_expert_bias(counts)` after each optimizer step, by 1e-3 (arXiv:2408.15664).

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        num_groups, topk_groups: groups, and how many of them a token may use.
        score: "softmax" is an option of the released code: scaled, not renormalised.
        expert_bias: keep the buffer. The released code declares it a parameter; it has no gradient.
        renormalize: None for True with sigmoid scores, False with softmax ones.
        scale: `routed_scaling_factor`, on renormalised weights, too.
        eps: added to the sum; 0 in the released inference code, 1e-20 in Transformers.
        group_fill: "0": what older public code ranks the experts of other groups as. Where biased scores are negative
            these then win over experts of the chosen groups.
        device: of the parameters.
    """
    return _linear_top_k(
        hidden_size,
        num_experts,
        top_k,
        score=score,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_top=2 if expert_bias else 1,
        group_fill=group_fill,
        renormalize=score == "sigmoid" if renormalize is None else renormalize,
        eps=eps,
        scale=scale,
        expert_bias=expert_bias,
        device=device,
    )


def glm4_moe(
    hidden_size: int,
    num_experts: int = 160,
    top_k: int = 8,
    *,
    num_groups: int = 1,
    topk_groups: int = 1,
    scale: float = 2.5,
    renormalize: bool = True,
    device: Device = None,
) -> Router:
    """GLM-4.5 (arXiv:2508.06471): `deepseek_v3` without groups. GLM-4.5-Air is `num_experts=128, scale=1.0`."""
    return deepseek_v3(
        hidden_size,
        num_experts,
        top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        renormalize=renormalize,
        scale=scale,
        device=device,
    )


def minimax_m2(hidden_size: int, num_experts: int = 256, top_k: int = 8, *, device: Device = None) -> Router:
    """MiniMax-M2: sigmoid scores, a bias that only selects, renormalised; no groups, no scale."""
    return _biased_sigmoid(hidden_size, num_experts, top_k, eps=0.0, device=device)


def afmoe(
    hidden_size: int, num_experts: int = 64, top_k: int = 6, *, scale: float = 1.0, device: Device = None
) -> Router:
    """AFMoE (Arcee's Trinity): as `minimax_m2`, times `route_scale`.

    The defaults are those of its configuration class in Transformers, not of a checkpoint.
    """
    return _biased_sigmoid(hidden_size, num_experts, top_k, eps=1e-20, scale=scale, device=device)


def lfm2_moe(
    hidden_size: int,
    num_experts: int = 32,
    top_k: int = 4,
    *,
    scale: float = 1.0,
    renormalize: bool = True,
    device: Device = None,
) -> Router:
    """LFM2-8B-A1B: as `minimax_m2`, but 1e-6 is added to the sum."""
    return _biased_sigmoid(
        hidden_size, num_experts, top_k, eps=1e-6, scale=scale, device=device, renormalize=renormalize
    )


def _biased_sigmoid(hidden_size: int, num_experts: int, top_k: int, *, device: Device, **options: Any) -> Router:
    """`deepseek_v3` without groups."""
    biased: dict[str, Any] = {"score": "sigmoid", "renormalize": True, "expert_bias": True}
    return _linear_top_k(hidden_size, num_experts, top_k, device=device, **biased | options)


def ernie4_5_moe(hidden_size: int, num_experts: int = 64, top_k: int = 6, *, device: Device = None) -> Router:
    """ERNIE-4.5-21B-A3B: softmax scores, a bias that only selects, renormalised."""
    return _linear_top_k(hidden_size, num_experts, top_k, renormalize=True, eps=0.0, expert_bias=True, device=device)


def longcat_flash(
    hidden_size: int, num_experts: int = 768, top_k: int = 12, *, scale: float = 6.0, device: Device = None
) -> Router:
    """LongCat-Flash (arXiv:2509.01322): softmax scores, a bias that only selects, not renormalised, times 6.

    The last 256 of its 768 experts compute nothing: they return their input.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, scale=scale, expert_bias=True, device=device)


def phimoe(
    hidden_size: int,
    num_experts: int = 16,
    top_k: int = 2,
    *,
    margin: float = 0.01,
    jitter: float = 0.0,
    jitter_scope: JitterScope = "all",
    device: Device = None,
) -> Router:
    """Phi-3.5-MoE and GRIN-MoE (arXiv:2409.12136): `SparseMixer`, which samples while training.

    Args:
        hidden_size, num_experts, top_k: H, E, K.
        margin: `router_jitter_noise`; no noise, but how far from the best logit another one may be.
        jitter: `input_jitter_noise`.
        jitter_scope: "all": experts see the jittered input, as in public code. "router": they don't.
        device: of the parameters.
    """
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        SparseMixer(num_experts, top_k, margin=margin),
        jitter=_jitter(jitter, jitter_scope),
    )


def llama4(hidden_size: int, num_experts: int = 16, top_k: int = 1, *, device: Device = None) -> Router:
    """Llama 4 Scout (16 experts) and Maverick (128): the best logit, weighed by its sigmoid.

    The weight multiplies what goes into the expert, not what comes out: `moe_ext.nn.Experts(apply_weights="input")`.
    A shared expert goes with it. The reference code, meant for inference, detaches that product; this doesn't.
    """
    return Router(
        LinearLogits(hidden_size, num_experts, device=device),
        Reweigh(TopK(num_experts, top_k, score="none"), "sigmoid"),
    )


def gpt_oss(hidden_size: int, num_experts: int = 128, top_k: int = 4, *, device: Device = None) -> Router:
    """gpt-oss-120b (128 experts) and 20b (32; arXiv:2508.10925): logits with a bias, softmax over the chosen ones."""
    return _linear_top_k(hidden_size, num_experts, top_k, gate_bias=True, softmax_after=True, device=device)


def granite_moe(hidden_size: int, num_experts: int = 32, top_k: int = 8, *, device: Device = None) -> Router:
    """Granite 3.0 and 3.1, 1B-A400M (32 experts) and 3B-A800M (40): softmax over the chosen logits.

    JetMoE (8 experts, K = 2; arXiv:2404.07413) routes so, too.
    """
    return _linear_top_k(hidden_size, num_experts, top_k, softmax_after=True, device=device)
