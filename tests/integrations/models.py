"""Tiny random models of Transformers in which the experts matter."""

from collections.abc import Callable

import torch
import transformers
from torch import nn

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _mixtral() -> transformers.PretrainedConfig:
    return transformers.MixtralConfig(
        **_COMMON, num_hidden_layers=2, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2
    )


def _qwen3_moe() -> transformers.PretrainedConfig:
    return transformers.Qwen3MoeConfig(
        **_COMMON,
        num_hidden_layers=2,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        decoder_sparse_step=1,
    )


def _deepseek_v3() -> transformers.PretrainedConfig:
    return transformers.DeepseekV3Config(
        **{**_COMMON, "num_key_value_heads": 4},
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=48,
        moe_intermediate_size=24,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )


def _gpt_oss() -> transformers.PretrainedConfig:
    # A limit that values reach: with the default of 7 a model this small would not show a missing clamp.
    return transformers.GptOssConfig(
        **_COMMON,
        num_hidden_layers=2,
        intermediate_size=24,
        num_local_experts=8,
        num_experts_per_tok=2,
        swiglu_limit=1.5,
        sliding_window=8,
    )


def _nemotron_h() -> transformers.PretrainedConfig:
    return transformers.NemotronHConfig(
        **_COMMON,
        layers_block_type=["full_attention", "moe", "full_attention", "moe"],
        intermediate_size=48,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24,
        moe_latent_size=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        routed_scaling_factor=1.5,
    )


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "nemotron_h": _nemotron_h,
}
NUM_MOE_LAYERS = 2


def build(family: str) -> nn.Module:
    """A float32 model of the family with eager experts, the same on every call.

    Weights get a standard deviation of 0.3: with the 0.02 that Transformers initialises with, the experts hardly
    reach the logits, and a test on the logits would prove nothing.
    """
    config = CONFIGS[family]()
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted((*model.named_parameters(), *model.named_buffers())):
            if tensor.dim() > 1 or name.endswith("bias"):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def experts_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that Transformers dispatches to the chosen implementation."""
    return [module for module in model.modules() if hasattr(module, "down_proj") and hasattr(module, "has_gate")]


def input_ids(batch_size: int = 3, length: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 64, (batch_size, length), generator=torch.Generator().manual_seed(seed))
