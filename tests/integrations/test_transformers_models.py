"""Whole models of Transformers on moe_ext, against the same models on Transformers' own experts."""

import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers", minversion="5.0", reason="needs transformers 5.0 or newer")

from transformers.integrations.moe import ExpertsInterface

from moe_ext.integrations import transformers as integration
from tests.integrations.models import CONFIGS, NUM_MOE_LAYERS, build, experts_modules, input_ids

families = pytest.mark.parametrize("family", CONFIGS)
ExpertsForward = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
Results = dict[str, Tensor]


NUM_DRAWS = 4


class SameChoices(TorchDispatchMode):
    """Lets the first model that runs under it make its top-k choices, and all later ones repeat them.

    Rounding moves the logits of a router a little, and where two experts are nearly equal another one is chosen. That
    is no error of the experts, but it would hide theirs: it changes a whole token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Tensor] = []
        self.num_calls = 0
        self.replaying = False

    def replay(self) -> "SameChoices":
        self.replaying, self.num_calls = True, 0
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.topk.default:
            return func(*args, **(kwargs or {}))
        if not self.replaying:
            values, indices = func(*args, **(kwargs or {}))
            self.choices.append(indices)
            return values, indices
        indices = self.choices[self.num_calls]
        self.num_calls += 1
        return args[0].gather(args[2] if len(args) > 2 else -1, indices), indices


def logits_and_gradients(model: nn.Module, implementation: str, choices: SameChoices, num_draws: int = 1) -> Results:
    """Logits and the gradient of every parameter, float64, for several draws of inputs.

    All draws, and all parameters of one role in several layers, share an entry: a handful of values, such as the
    attention sinks of one layer, is too few to measure an error on.
    """
    model.set_experts_implementation(implementation)
    results: dict[str, list[Tensor]] = {}
    for draw in range(num_draws):
        model.zero_grad()
        with choices:
            logits = model(input_ids(seed=draw)).logits
        cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
        (logits.double() * cotangent).sum().backward()
        results.setdefault("logits", []).append(logits.detach())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                results.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(parameter.grad)
    assert choices.num_calls in (0, len(choices.choices))
    return {name: torch.cat([part.double().flatten() for part in parts]) for name, parts in results.items()}


def measures(results: Results, truth: Results) -> dict[str, float]:
    """For every entry its relative error, and how far its size along the truth is off: rounding hardly moves that,
    so a result that is 5 % too large shows even where bfloat16 errs by as much."""
    assert results.keys() == truth.keys()
    values = {}
    for name, true in truth.items():
        size = true.norm().clamp(min=1e-300)
        values[name] = float((results[name] - true).norm() / size)
        values[f"size of {name}"] = abs(float(results[name] @ true / size**2) - 1)
    return values


@dataclass
class Subject:
    """A model, what its weights give in float64 on eager experts, and how far a result may be from that: twice as far
    as the worse of Transformers' own implementations, plus a few units in the last place."""

    model: nn.Module
    truth: Results
    choices: SameChoices
    limits: dict[str, float]

    def excesses(self, implementation: str) -> dict[str, str]:
        results = logits_and_gradients(self.model, implementation, self.choices.replay(), NUM_DRAWS)
        ours = measures(results, self.truth)
        limits = self.limits
        return {name: f"{ours[name]:.2e}, limit {limits[name]:.2e}" for name in ours if not ours[name] < limits[name]}


def prepare(model: nn.Module) -> Subject:
    choices = SameChoices()
    truth = logits_and_gradients(copy.deepcopy(model).double(), "eager", choices, NUM_DRAWS)
    assert len(choices.choices) >= NUM_DRAWS * NUM_MOE_LAYERS
    own = [
        measures(logits_and_gradients(model, name, choices.replay(), NUM_DRAWS), truth)
        for name in ("eager", "grouped_mm")
    ]
    slack = 2 * torch.finfo(next(model.parameters()).dtype).eps
    return Subject(model, truth, choices, {name: 2 * max(values[name] for values in own) + slack for name in own[0]})


@functools.cache
def subject(family: str, dtype: torch.dtype) -> Subject:
    return prepare(build(family).to(dtype))


@pytest.fixture
def count_ops(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the integration called which op."""
    counts = {"fused_experts": 0, "grouped_gemm": 0}

    def counted(name: str) -> Callable[..., Tensor]:
        op = getattr(integration, name)

        def call(*args: object, **kwargs: object) -> Tensor:
            counts[name] += 1
            return op(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(integration, name, counted(name))
    return counts


@pytest.fixture
def register_mutant() -> Iterator[Callable[[ExpertsForward], str]]:
    def register(forward: ExpertsForward) -> str:
        ExpertsInterface.register("mutant", forward)
        return "mutant"

    yield register
    ExpertsInterface._global_mapping.pop("mutant", None)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_and_every_gradient(family: str, dtype: torch.dtype, count_ops: dict[str, int]) -> None:
    model, truth = subject(family, dtype).model, subject(family, dtype).truth
    experts = [name for name in truth if "experts" in name and "shared" not in name]
    assert len(experts) >= 2
    assert all(truth[name].norm() > 0 for name in experts)

    assert subject(family, dtype).excesses("moe_ext") == {}
    # Every MoE layer, once, on the fused path.
    assert len(experts_modules(model)) == NUM_MOE_LAYERS
    assert count_ops == {"fused_experts": NUM_DRAWS * NUM_MOE_LAYERS, "grouped_gemm": 0}


def scaled(self: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return 1.05 * integration.experts_forward(self, hidden, ids, weights)


def swapped(self: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    ids = torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids))
    return integration.experts_forward(self, hidden, ids, weights)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mutant", [scaled, swapped])
def test_the_comparison_catches_a_mutant(
    family: str,
    dtype: torch.dtype,
    mutant: ExpertsForward,
    register_mutant: Callable[[ExpertsForward], str],
) -> None:
    assert subject(family, dtype).excesses(register_mutant(mutant)) != {}


@families
def test_all_steps_in_python(family: str, count_ops: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # The path of unknown activations has to be right for every layout, too.
    monkeypatch.setattr(integration, "recognise", lambda experts, has_gate: None)
    assert subject(family, torch.float32).excesses("moe_ext") == {}
    assert count_ops == {"fused_experts": 0, "grouped_gemm": 2 * NUM_DRAWS * NUM_MOE_LAYERS}


@pytest.mark.parametrize("activation", ["mish", "quick_gelu", "tanh"])
def test_unknown_activation(activation: str, count_ops: dict[str, int]) -> None:
    from transformers.activations import ACT2FN

    model = build("mixtral")
    for experts in experts_modules(model):
        experts.act_fn = ACT2FN[activation]
    prepared = prepare(model)
    assert count_ops["grouped_gemm"] == 0
    assert prepared.excesses("moe_ext") == {}
    assert count_ops == {"fused_experts": 0, "grouped_gemm": 2 * NUM_DRAWS * NUM_MOE_LAYERS}


@families
def test_generate(family: str, count_ops: dict[str, int]) -> None:
    model = build(family).eval()
    prompt = input_ids(batch_size=2, length=5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(prompt)}
    model.set_experts_implementation("eager")
    expected = model.generate(prompt, **options)
    assert count_ops["fused_experts"] == 0
    model.set_experts_implementation("moe_ext")
    assert torch.equal(model.generate(prompt, **options), expected)
    assert count_ops["fused_experts"] == 6 * NUM_MOE_LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nemotron_h"])
def test_compiles_as_one_graph(family: str) -> None:
    def logits_and_weight_gradient(model: nn.Module) -> tuple[Tensor, ...]:
        logits = model(input_ids()).logits
        return logits, *torch.autograd.grad(logits.square().sum(), experts_modules(model)[0].down_proj)

    model = build(family)
    model.set_experts_implementation("moe_ext")
    expected = logits_and_weight_gradient(model)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits_and_weight_gradient(model), expected)
    torch.compiler.reset()


def test_from_config_and_per_module_choice() -> None:
    import transformers

    config = CONFIGS["mixtral"]()
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="moe_ext")
    assert model.config._experts_implementation == "moe_ext"
    with pytest.raises(ValueError, match="no_such_thing"):
        model.set_experts_implementation("no_such_thing")


def test_autocast(count_ops: dict[str, int]) -> None:
    model = build("mixtral")
    choices = SameChoices()
    logits = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for implementation in ("eager", "moe_ext"):
            model.set_experts_implementation(implementation)
            with choices:
                logits[implementation] = model(input_ids()).logits
            choices.replay()
    assert count_ops["fused_experts"] == NUM_MOE_LAYERS
    assert logits["moe_ext"].dtype == logits["eager"].dtype
    difference = (logits["moe_ext"] - logits["eager"]).float()
    assert difference.norm() / logits["eager"].float().norm() < 0.02
