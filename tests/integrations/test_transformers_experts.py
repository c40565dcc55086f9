"""One experts module at a time: every layout, dtype pair and gating function, and ids of other ranks."""

import importlib
import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.0", reason="needs transformers 5.0 or newer")

from transformers.activations import ACT2FN
from transformers.integrations.moe import ExpertsInterface, use_experts_implementation

from moe_ext.integrations import transformers as integration
from moe_ext.integrations._epilogue import Epilogue, recognise

T, H, INTERMEDIATE, E, K = 13, 10, 6, 5, 2


def make_experts(
    *,
    transposed: bool = False,
    interleaved: bool = False,
    bias: bool = False,
    gate: bool = True,
    norm: bool = False,
    act: object = "silu",
    apply_gate: object = None,
) -> nn.Module:
    """An experts module as Transformers has them, with the eager forward written out per token, in float64."""

    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.num_experts = E
            prefix = "gate_up_proj" if gate else "up_proj"
            width = (2 if gate else 1) * INTERMEDIATE
            for name, shape in ((prefix, (width, H)), ("down_proj", (H, INTERMEDIATE))):
                weight = torch.randn(E, *(shape[::-1] if transposed else shape)) / shape[1] ** 0.5
                setattr(self, name, nn.Parameter(weight.double()))
                if bias:
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(E, shape[0]).double()))
            self.act_fn = ACT2FN[act] if isinstance(act, str) else act
            self.alpha, self.limit = 1.3, 0.8
            if norm:
                self.post_expert_norm = nn.RMSNorm(H).double()

        def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            def linear(x: Tensor, name: str, e: int) -> Tensor:
                weight = getattr(self, name)[e]
                y = x @ (weight if transposed else weight.T)
                return y + getattr(self, f"{name}_bias")[e] if bias else y

            rows = []
            for t in range(hidden.shape[0]):
                row = torch.zeros_like(hidden[t])
                for k in range(ids.shape[1]):
                    e = int(ids[t, k])
                    if not 0 <= e < E:
                        continue
                    x = linear(hidden[t : t + 1], "gate_up_proj" if gate else "up_proj", e)
                    x = linear(self._apply_gate(x) if gate else self.act_fn(x), "down_proj", e)
                    row = row + weights[t, k] * (self.post_expert_norm(x) if norm else x)[0]
                rows.append(row)
            return torch.stack(rows)

    if apply_gate is not None:
        Experts._apply_gate = apply_gate
    elif interleaved:
        Experts._apply_gate = interleaved_gate
    decorate = use_experts_implementation(
        is_concatenated=not interleaved,
        is_transposed=transposed,
        has_bias=bias,
        has_gate=gate,
        has_post_expert_norm=norm,
    )
    return decorate(Experts)(SimpleNamespace(_experts_implementation="eager"))


def interleaved_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    return self.act_fn(gate_up[..., ::2]) * gate_up[..., 1::2]


def clamped_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=self.limit), up.clamp(min=-self.limit, max=self.limit)
    return (up + 1) * (gate * torch.sigmoid(self.alpha * gate))


def clamped_silu_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.clamp(max=self.limit)) * up.clamp(min=-self.limit, max=self.limit)


def swapped_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    up, gate = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate) * up


def almost_the_default_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate) * up * 1.001


def almost_the_clamped_gate(self: nn.Module, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=self.limit), up.clamp(max=self.limit)
    return (up + 1) * (gate * torch.sigmoid(self.alpha * gate))


def run(experts: nn.Module, implementation: str, *inputs: Tensor) -> list[Tensor]:
    """y and the gradients of hidden states, weights and parameters."""
    experts.config._experts_implementation = implementation
    hidden, ids, weights = inputs
    hidden, weights = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
    y = experts(hidden, ids, weights)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    wanted = [hidden, weights, *experts.parameters()]
    return [y, *torch.autograd.grad(y, wanted, cotangent)]


def draw_inputs() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
    return torch.randn(T, H).double(), ids, torch.rand(T, K).double()


def assert_same(experts: nn.Module, *inputs: Tensor) -> None:
    for actual, expected in zip(run(experts, "moe_ext", *inputs), run(experts, "eager", *inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


GATES = {
    "default": {},
    "interleaved": {"interleaved": True},
    "clamped": {"apply_gate": clamped_gate},
    "clamped_silu": {"apply_gate": clamped_silu_gate},
    "swapped": {"apply_gate": swapped_gate},
    "no_gate": {"gate": False, "act": "relu2"},
}
FUSED = ("default", "interleaved", "clamped", "no_gate")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("transposed", "bias", "norm"), list(itertools.product([False, True], repeat=3)), ids=str)
def test_every_layout(gate: str, transposed: bool, bias: bool, norm: bool) -> None:
    experts = make_experts(**GATES[gate], transposed=transposed, bias=bias, norm=norm)
    # The loop knows the layouts by itself, so a flag that nobody reads would show.
    assert (recognise(experts, experts.has_gate) is not None) == (gate in FUSED)
    assert_same(experts, *draw_inputs())


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    ("act", "name"),
    [
        ("silu", "silu"),
        ("swish", "silu"),
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_new", "gelu_tanh"),
        ("relu", "relu"),
        ("relu2", "relu2"),
        (F.silu, "silu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        ("mish", None),
        ("quick_gelu", None),
        ("leaky_relu", None),
        (torch.tanh, None),
    ],
    # Not str of a function, which holds its address: ids are the same in every process.
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_activations(act: object, name: str | None, gate: bool) -> None:
    experts = make_experts(act=act, gate=gate)
    if gate:
        name = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}.get(name)
    epilogue = recognise(experts, gate)
    assert (None if epilogue is None else epilogue.activation) == name
    assert_same(experts, *draw_inputs())


@pytest.mark.parametrize("fused", [True, False])
def test_ids_of_other_ranks(fused: bool) -> None:
    experts = make_experts(bias=True, norm=not fused)
    hidden, ids, weights = draw_inputs()
    ids[torch.rand(T, K) < 0.4] = E
    ids[0] = E
    ids[1] = torch.tensor([E + 7, -1])
    inputs = hidden, ids, weights
    assert_same(experts, *inputs)
    y, grad_hidden, grad_weights, *_ = run(experts, "moe_ext", *inputs)
    assert (y[:2] == 0).all()
    assert (grad_hidden[:2] == 0).all()
    assert (grad_weights[(ids < 0) | (ids >= E)] == 0).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("hidden_dtype", "dtype", "weights_dtype"),
    [
        dtypes
        for dtypes in itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=3)
        # Half precision of two kinds in one module: nobody has that.
        if not ({torch.bfloat16, torch.float16} <= set(dtypes))
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_any_pair_of_dtypes(
    hidden_dtype: torch.dtype, dtype: torch.dtype, weights_dtype: torch.dtype, fused: bool
) -> None:
    experts = make_experts(bias=True, norm=not fused).to(dtype)
    hidden, ids, weights = draw_inputs()
    inputs = hidden.to(hidden_dtype), ids, weights.to(weights_dtype)
    actual = run(experts, "moe_ext", *inputs)
    assert actual[0].dtype == actual[1].dtype == hidden_dtype
    assert actual[2].dtype == weights_dtype
    truth = run(experts.double(), "eager", inputs[0].double(), ids, inputs[2].double())
    eps = max(torch.finfo(d).eps for d in (hidden_dtype, dtype, weights_dtype))
    for a, b in zip(actual, truth, strict=True):
        assert (a.double() - b).norm() < 4 * eps * b.norm()


def test_no_tokens() -> None:
    experts = make_experts()
    empty = torch.empty(0, H).double(), torch.empty(0, K, dtype=torch.int64), torch.empty(0, K).double()
    y, grad_hidden, _, *grads = run(experts, "moe_ext", *empty)
    assert y.shape == grad_hidden.shape == (0, H)
    assert all((grad == 0).all() for grad in grads)


# Which gating function is which ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply_gate", "expected"),
    [
        (None, Epilogue("swiglu")),
        (interleaved_gate, Epilogue("swiglu", interleaved=True)),
        (clamped_gate, Epilogue("clamped_swiglu", False, 1.3, 0.8)),
        (clamped_silu_gate, None),
        (swapped_gate, None),
        (almost_the_default_gate, None),
        (almost_the_clamped_gate, None),
        (lambda self, gate_up: gate_up.chunk(2, dim=-1)[self.no_such_attribute], None),
        (lambda self, gate_up: None, None),
    ],
)
def test_recognised_by_what_it_computes(apply_gate: object, expected: Epilogue | None) -> None:
    assert recognise(make_experts(apply_gate=apply_gate), True) == expected


def test_changed_instances_are_not_recognised() -> None:
    hidden, ids, weights = draw_inputs()
    experts = make_experts()
    experts._apply_gate = lambda gate_up: swapped_gate(experts, gate_up)
    assert recognise(experts, True) is None
    assert_same(experts, hidden, ids, weights)

    experts = make_experts()
    seen = []
    experts.act_fn.register_forward_hook(lambda module, args, output: seen.append(output))
    run(experts, "moe_ext", hidden, ids, weights)
    assert len(seen) == 1

    experts = make_experts()
    experts.act_fn.forward = torch.tanh
    assert_same(experts, hidden, ids, weights)

    class LoudSiLU(nn.SiLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert_same(make_experts(act=LoudSiLU()), hidden, ids, weights)


def test_attributes_that_are_no_plain_numbers() -> None:
    experts = make_experts(apply_gate=clamped_gate)
    experts.alpha = torch.linspace(0.5, 1.5, INTERMEDIATE).double()
    assert recognise(experts, True) is None
    assert_same(experts, *draw_inputs())


@pytest.mark.parametrize(
    ("model", "class_name", "expected"),
    [
        ("mixtral", "MixtralExperts", (False, None, None)),
        ("gpt_oss", "GptOssExperts", (True, "alpha", "limit")),
        ("openai_privacy_filter", "OpenAIPrivacyFilterExperts", (False, "alpha", "limit")),
        ("minimax_m3_vl", "MiniMaxM3VLExperts", (False, "swiglu_alpha", "swiglu_limit")),
        ("deepseek_v4", "DeepseekV4Experts", None),
        ("inkling2", "Inkling2Experts", None),
    ],
)
def test_classes_of_transformers(model: str, class_name: str, expected: object) -> None:
    from moe_ext.integrations import _epilogue

    try:
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    except ImportError:
        pytest.skip(f"this version of transformers has no {model}")
    assert _epilogue._formula_of(getattr(module, class_name)._apply_gate) == expected


@pytest.mark.parametrize("apply_gate", [clamped_gate, clamped_silu_gate])
def test_first_seen_while_tracing(apply_gate: object) -> None:
    # A new function each time, so that nothing is remembered from an earlier run.
    experts = make_experts(apply_gate=lambda self, gate_up: apply_gate(self, gate_up))
    inputs = draw_inputs()
    expected = run(experts, "eager", *inputs)
    experts.config._experts_implementation = "moe_ext"
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected[0])
    torch.compiler.reset()

    experts = make_experts(apply_gate=lambda self, gate_up: apply_gate(self, gate_up))
    experts.config._experts_implementation = "moe_ext"
    exported = torch.export.export(experts, inputs, strict=False)
    torch.testing.assert_close(exported.module()(*inputs), experts(*inputs))


# Registration ------------------------------------------------------------------------------------------------------


def test_register() -> None:
    assert ExpertsInterface._global_mapping["moe_ext"] is integration.experts_forward
    integration.register()
    assert ExpertsInterface._global_mapping["moe_ext"] is integration.experts_forward
    integration.register("another_name")
    assert ExpertsInterface._global_mapping.pop("another_name") is integration.experts_forward


@pytest.mark.parametrize("missing", ["transformers", "transformers.integrations.moe"])
def test_import_without_transformers(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import moe_ext.nn
try:
    import moe_ext.integrations.transformers
except ImportError as error:
    assert "needs the package transformers" in str(error), error
    assert "5.0" in str(error)
else:
    raise SystemExit("no ImportError")
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
