"""The routers of moe_ext.routing.published against those of Transformers, with the same weights: experts, weights and
the gradients of input and router weight."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_ext.routing import published, sparse_mixer

transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers 5.0 or newer")

T, H, E, K = 24, 32, 16, 4
Theirs = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def listed(router: nn.Module, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Most return logits, weights [T, K] and ids [T, K]."""
    logits, weights, ids = router(x) if bias is None else router(x, bias)
    return logits, torch.zeros_like(logits).scatter(1, ids, weights)


def llama4(router: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    scores, logits = router(x)
    return logits, scores


def dbrx(ffn: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = ffn.router(x)
    weights, ids = ffn.route_tokens_to_experts(logits)
    return logits, torch.zeros_like(logits).scatter(1, ids, weights)


def switch(router: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    chosen, probability, logits = router(x[None])
    return logits[0], (chosen * probability)[0]


def nllb(router: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    _, weights, logits = router(x)
    return logits, weights


def jetmoe(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights sorted by expert, and how many each expert has."""
    _, tokens, weights, sizes, logits = layer.router(x)
    experts = torch.arange(logits.shape[1]).repeat_interleave(torch.tensor(sizes))
    return logits, torch.zeros_like(logits).index_put((tokens, experts), weights)


def three_dimensional(router: nn.Module, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return listed(lambda x, bias: router(x[None], bias), x, bias)


@dataclass
class Case:
    """A router of Transformers, and the constructor and options that shall do as it does."""

    model: str
    router: str
    config: dict[str, Any]
    ours: str
    options: dict[str, Any] = field(default_factory=dict)
    theirs: Theirs = listed
    # What holds the bias for the selection; "argument" where forward takes it.
    bias: str | None = None
    config_class: str | None = None


COMMON = {"hidden_size": H, "num_experts_per_tok": K}
LOCAL = {**COMMON, "num_local_experts": E}
GLOBAL = {**COMMON, "num_experts": E}
ROUTED = {**COMMON, "n_routed_experts": E}

CASES = {
    "mixtral": Case("mixtral", "MixtralTopKRouter", LOCAL, "mixtral"),
    "minimax": Case("minimax", "MiniMaxTopKRouter", LOCAL, "minimax"),
    "hunyuan": Case("hunyuan_v1_moe", "HunYuanMoEV1Gate", {**GLOBAL, "moe_topk": K}, "mixtral"),
    "qwen2_moe": Case("qwen2_moe", "Qwen2MoeTopKRouter", {**GLOBAL, "norm_topk_prob": False}, "qwen2_moe"),
    "qwen2_moe_renormalised": Case(
        "qwen2_moe", "Qwen2MoeTopKRouter", {**GLOBAL, "norm_topk_prob": True}, "qwen2_moe", {"renormalize": True}
    ),
    "qwen3_moe": Case("qwen3_moe", "Qwen3MoeTopKRouter", {**GLOBAL, "norm_topk_prob": True}, "qwen3_moe"),
    "qwen3_moe_plain": Case(
        "qwen3_moe", "Qwen3MoeTopKRouter", {**GLOBAL, "norm_topk_prob": False}, "qwen3_moe", {"renormalize": False}
    ),
    "olmoe": Case("olmoe", "OlmoeTopKRouter", {**GLOBAL, "norm_topk_prob": False}, "olmoe"),
    "flex_olmo": Case("flex_olmo", "FlexOlmoTopKRouter", {**GLOBAL, "norm_topk_prob": False}, "olmoe"),
    "qwen3_next": Case("qwen3_next", "Qwen3NextTopKRouter", {**GLOBAL, "norm_topk_prob": True}, "qwen3_moe"),
    "jamba": Case("jamba", "JambaTopKRouter", GLOBAL, "jamba"),
    "deepseek_v2": Case(
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {
            **ROUTED,
            "topk_method": "group_limited_greedy",
            "n_group": 8,
            "topk_group": 3,
            "routed_scaling_factor": 16.0,
        },
        "deepseek_v2",
        {"group_fill": "0"},
    ),
    "deepseek_v2_lite": Case(
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {**ROUTED, "topk_method": "greedy", "routed_scaling_factor": 1.0},
        "deepseek_v2",
        {"num_groups": 1, "topk_groups": 1, "scale": 1.0},
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        {**ROUTED, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        "deepseek_v3",
        bias="e_score_correction_bias",
    ),
    "deepseek_v3_plain": Case(
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        {**ROUTED, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": False},
        "deepseek_v3",
        {"num_groups": 2, "topk_groups": 1, "renormalize": False},
        bias="e_score_correction_bias",
    ),
    "glm4_moe": Case(
        "glm4_moe",
        "Glm4MoeTopkRouter",
        {**ROUTED, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        "glm4_moe",
        bias="e_score_correction_bias",
    ),
    "glm4_moe_lite": Case(
        "glm4_moe_lite",
        "Glm4MoeLiteTopkRouter",
        {**ROUTED, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": True},
        "glm4_moe",
        {"scale": 1.8},
        bias="e_score_correction_bias",
    ),
    "dots1": Case(
        "dots1",
        "Dots1TopkRouter",
        {**ROUTED, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        "deepseek_v3",
        {"num_groups": 4, "topk_groups": 2},
        bias="e_score_correction_bias",
    ),
    "minimax_m2": Case("minimax_m2", "MiniMaxM2TopKRouter", LOCAL, "minimax_m2", bias="argument"),
    "afmoe": Case(
        "afmoe",
        "AfmoeTokenChoiceRouter",
        {**GLOBAL, "route_scale": 1.5},
        "afmoe",
        {"scale": 1.5},
        three_dimensional,
        bias="argument",
    ),
    "lfm2_moe": Case("lfm2_moe", "Lfm2MoeTopKRouter", {**GLOBAL, "use_expert_bias": True}, "lfm2_moe", bias="argument"),
    "ernie4_5_moe": Case(
        "ernie4_5_moe",
        "Ernie4_5_MoeTopKRouter",
        {"hidden_size": H, "moe_num_experts": E, "moe_k": K},
        "ernie4_5_moe",
        bias="moe_statics.e_score_correction_bias",
        config_class="Ernie4_5_MoeConfig",
    ),
    "longcat_flash": Case(
        "longcat_flash",
        "LongcatFlashTopkRouter",
        {
            "hidden_size": H,
            "n_routed_experts": E - 4,
            "zero_expert_num": 4,
            "moe_topk": K,
            "routed_scaling_factor": 6.0,
        },
        "longcat_flash",
        bias="e_score_correction_bias",
    ),
    "llama4": Case("llama4", "Llama4Router", LOCAL, "llama4", theirs=llama4, config_class="Llama4TextConfig"),
    "phimoe": Case(
        "phimoe",
        "PhimoeTopKRouter",
        {**LOCAL, "num_experts_per_tok": 2, "router_jitter_noise": 0.2},
        "phimoe",
        {"margin": 0.2},
    ),
    "gpt_oss": Case("gpt_oss", "GptOssTopKRouter", LOCAL, "gpt_oss"),
    "granite_moe": Case("granitemoe", "GraniteMoeTopKRouter", LOCAL, "granite_moe", config_class="GraniteMoeConfig"),
    "jetmoe": Case(
        "jetmoe",
        "JetMoeMoE",
        {**LOCAL, "intermediate_size": 8},
        "granite_moe",
        theirs=jetmoe,
        config_class="JetMoeConfig",
    ),
    **{
        f"dbrx_{p}": Case(
            "dbrx",
            "DbrxFFN",
            {
                "d_model": H,
                "ffn_config": {
                    "hidden_size": H,
                    "ffn_hidden_size": 8,
                    "moe_num_experts": E,
                    "moe_top_k": K,
                    "moe_normalize_expert_weights": p,
                },
            },
            "dbrx",
            {"p": p},
            dbrx,
        )
        for p in (1.0, 2.0, None)
    },
    "switch": Case(
        "switch_transformers",
        "SwitchTransformersTop1Router",
        {"d_model": H, "num_experts": E, "expert_capacity": T, "router_jitter_noise": 0.0},
        "switch",
        theirs=switch,
    ),
    "gshard": Case(
        "nllb_moe",
        "NllbMoeTop2Router",
        {
            "d_model": H,
            "num_experts": E,
            "expert_capacity": 2 * T,
            "router_bias": False,
            "second_expert_policy": "all",
            "normalize_router_prob_before_dropping": True,
            "moe_eval_capacity_token_fraction": 1.0,
        },
        "gshard",
        {"second_expert": "all"},
        nllb,
    ),
}
SIZED = {"switch": (H, E), "gshard": (H, E), "phimoe": (H, E, 2)}


def find(case: Case) -> nn.Module:
    """The router of Transformers with random weights."""
    module = f"transformers.models.{case.model}"
    try:
        modeling = importlib.import_module(f"{module}.modeling_{case.model}")
        router_class = getattr(modeling, case.router)
    except (ImportError, AttributeError):
        pytest.skip(f"transformers {transformers.__version__} has no {case.router}")
    configuration = importlib.import_module(f"{module}.configuration_{case.model}")
    # MixtralTopKRouter belongs to MixtralConfig, unless the case says otherwise.
    stem = re.sub(r"(TopKRouter|TopkRouter|TokenChoiceRouter|Top1Router|Top2Router|Gate|FFN)$", "", case.router)
    config = getattr(configuration, case.config_class or f"{stem}Config")(**case.config)
    torch.manual_seed(0)
    router = router_class(config).float()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(std=0.3)
    return router.eval()


def gate_of(router: nn.Module) -> nn.Module:
    """What holds the weight of the gate."""
    for name in ("router.layer", "layer", "classifier", "gate", "wg"):
        try:
            return router.get_submodule(name)
        except AttributeError:
            pass
    return router


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest value, or absolute below 1."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("name", CASES)
def test_same_experts_weights_and_gradients(name: str) -> None:
    case = CASES[name]
    theirs = find(case)
    gate = gate_of(theirs)
    ours = getattr(published, case.ours)(*SIZED.get(name, (H, E, K)), **case.options).eval()
    with torch.no_grad():
        ours.logits.weight.copy_(gate.weight)
        if ours.logits.bias is not None:
            ours.logits.bias.copy_(gate.bias)
    bias = None
    if case.bias is not None:
        ours.expert_bias.uniform_(-0.2, 0.2)
        bias = ours.expert_bias.clone() if case.bias == "argument" else None
    if case.bias is not None and case.bias != "argument":
        owner, _, attribute = case.bias.rpartition(".")
        getattr(theirs.get_submodule(owner), attribute).data.copy_(ours.expert_bias)
    x = torch.randn(T, H)
    cotangent = torch.randn(T, E)

    x_theirs, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits, dense = case.theirs(theirs, x_theirs, bias)
    output = ours(x_ours)
    dense_ours = torch.zeros(T, E).scatter(1, output.topk_ids.long(), output.topk_weights)

    assert torch.equal(dense_ours != 0, dense != 0)
    assert int((dense != 0).sum()) == output.topk_ids.numel()
    assert largest_error(output.router_logits, logits) < 1e-6
    assert largest_error(dense_ours, dense) < 1e-6
    gradients = torch.autograd.grad((dense * cotangent).sum(), [x_theirs, gate.weight])
    gradients_ours = torch.autograd.grad((dense_ours * cotangent).sum(), [x_ours, ours.logits.weight])
    for a, b in zip(gradients_ours, gradients, strict=True):
        assert b.abs().max() > 1e-3
        assert largest_error(a, b) < 1e-6


# Where the defaults of a configuration class are those of the released model (its docstring names the checkpoint).
CONFIGURATIONS = {
    "mixtral": ("mixtral", "MixtralConfig", "num_local_experts", "num_experts_per_tok"),
    "minimax_m2": ("minimax_m2", "MiniMaxM2Config", "num_local_experts", "num_experts_per_tok"),
    "qwen2_moe": ("qwen2_moe", "Qwen2MoeConfig", "num_experts", "num_experts_per_tok"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeConfig", "num_experts", "num_experts_per_tok"),
    "olmoe": ("olmoe", "OlmoeConfig", "num_experts", "num_experts_per_tok"),
    "jamba": ("jamba", "JambaConfig", "num_experts", "num_experts_per_tok"),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3Config", "n_routed_experts", "num_experts_per_tok"),
    "ernie4_5_moe": ("ernie4_5_moe", "Ernie4_5_MoeConfig", "moe_num_experts", "moe_k"),
    "lfm2_moe": ("lfm2_moe", "Lfm2MoeConfig", "num_experts", "num_experts_per_tok"),
    "afmoe": ("afmoe", "AfmoeConfig", "num_experts", "num_experts_per_tok"),
    "llama4": ("llama4", "Llama4TextConfig", "num_local_experts", "num_experts_per_tok"),
    "phimoe": ("phimoe", "PhimoeConfig", "num_local_experts", "num_experts_per_tok"),
    "gpt_oss": ("gpt_oss", "GptOssConfig", "num_local_experts", "num_experts_per_tok"),
    "longcat_flash": ("longcat_flash", "LongcatFlashConfig", "n_routed_experts", "moe_topk"),
}


def configuration(name: str) -> Any:
    model, config_class, *_ = CONFIGURATIONS[name]
    try:
        module = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    except ImportError:
        pytest.skip(f"transformers {transformers.__version__} has no {model}")
    return getattr(module, config_class)()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sizes_are_those_of_the_configuration(name: str) -> None:
    *_, experts, top_k = CONFIGURATIONS[name]
    config = configuration(name)
    output = getattr(published, name)(8).eval()(torch.randn(2, 8))
    # LongCat-Flash counts its experts that compute nothing by themselves.
    num_experts = getattr(config, experts) + getattr(config, "zero_expert_num", 0)
    assert output.router_logits.shape[1] == num_experts
    assert output.topk_ids.shape[1] == getattr(config, top_k)


@pytest.mark.parametrize(
    ("name", "option", "attribute"),
    [
        ("deepseek_v3", "scale", "routed_scaling_factor"),
        ("deepseek_v3", "num_groups", "n_group"),
        ("deepseek_v3", "topk_groups", "topk_group"),
        ("longcat_flash", "scale", "routed_scaling_factor"),
        ("afmoe", "scale", "route_scale"),
        ("lfm2_moe", "scale", "routed_scaling_factor"),
    ],
)
def test_constants_are_those_of_the_configuration(name: str, option: str, attribute: str) -> None:
    assert getattr(published, name)(8).selection.options[option] == getattr(configuration(name), attribute)


def test_margin_of_phimoe() -> None:
    assert published.phimoe(8).selection.margin == configuration("phimoe").router_jitter_noise


def test_phimoe_samples_and_learns_as_public_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training: the same random numbers, hence the same experts, weights and estimated gradients."""
    modeling = pytest.importorskip("transformers.models.phimoe.modeling_phimoe")
    torch.manual_seed(0)
    num_tokens = 200
    scores, cotangent = torch.randn(num_tokens, E), torch.randn(num_tokens, 2)
    gumbel = -torch.empty(2, num_tokens, E).exponential_().log()
    uniform = torch.rand(2, num_tokens, 1)

    numbers = {"gumbel": iter(gumbel), "uniform": iter(uniform)}
    monkeypatch.setattr(sparse_mixer, "random", lambda seed, shape, kind: next(numbers[kind]))
    ours = scores.clone().requires_grad_()
    weights, ids = published.phimoe(H, E, 2, margin=0.3).selection(ours)
    (grad,) = torch.autograd.grad((weights * cotangent).sum(), ours)

    exponential, rand = iter((-gumbel).exp()), iter(uniform)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda _: next(exponential))
    monkeypatch.setattr(torch, "rand_like", lambda _: next(rand))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda numbers: numbers)
    theirs = scores.clone().requires_grad_()
    expected, expected_ids = modeling.sparsemixer(theirs, 0.3, training=True, top_k=2)
    (expected_grad,) = torch.autograd.grad((expected * cotangent).sum(), theirs)

    assert torch.equal(ids.long(), expected_ids)
    # Some samples are not the best expert, and of these some weigh a third, which public code has as 0.3333.
    assert 0 < int((ids[:, 0] != scores.argmax(1)).sum()) < num_tokens
    torch.testing.assert_close(weights, expected, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad)
