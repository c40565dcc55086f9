"""The routers of published models by name, each a `Router` (or made of some) with the published constants as defaults.

    router = moe_ext.routing.published.deepseek_v3(hidden_size=7168)

`papers` has those that research papers describe, `models` those of released checkpoints. Where public code and paper
part, a keyword says which of them to follow, and the docstring which is the default. Capacity and losses are stages of
their own; the docstrings name those that belong to a router.
"""

from moe_ext.routing.published.models import (
    afmoe,
    dbrx,
    deepseek_moe,
    deepseek_v2,
    deepseek_v3,
    ernie4_5_moe,
    glm4_moe,
    gpt_oss,
    granite_moe,
    jamba,
    lfm2_moe,
    llama4,
    longcat_flash,
    minimax,
    minimax_m2,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
)
from moe_ext.routing.published.papers import (
    dense,
    glam,
    gshard,
    hierarchical,
    mixture_of_attention_heads,
    mod_squad,
    noisy_top_k,
    random_moe,
    st_moe,
    switch,
    v_moe,
    x_moe,
)

__all__ = [
    "afmoe",
    "dbrx",
    "deepseek_moe",
    "deepseek_v2",
    "deepseek_v3",
    "dense",
    "ernie4_5_moe",
    "glam",
    "glm4_moe",
    "gpt_oss",
    "granite_moe",
    "gshard",
    "hierarchical",
    "jamba",
    "lfm2_moe",
    "llama4",
    "longcat_flash",
    "minimax",
    "minimax_m2",
    "mixtral",
    "mixture_of_attention_heads",
    "mod_squad",
    "noisy_top_k",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "random_moe",
    "st_moe",
    "switch",
    "v_moe",
    "x_moe",
]
