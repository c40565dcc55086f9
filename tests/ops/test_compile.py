"""torch.compile: one graph, right gradients, and no recompilation when only the routing or the batch changes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.ops.samples import HIDDEN_SIZE, MODELS, NUM_EXPERTS, TOP_K, fused_model, model_weights, tokens
from tests.support.backends import Backend

COMPILERS = ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outputs_and_grads(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    output = function(*inputs)
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("model", MODELS)
def test_new_routing_does_not_recompile(backend: Backend, model: Callable[..., Tensor], compiler: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    routings = set()
    for seed in range(3):
        inputs = backend.put((tokens(9, seed), *model_weights()))
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            got = outputs_and_grads(compiled, inputs)
        torch.testing.assert_close(got, outputs_and_grads(model, inputs))
        routings.add(tuple(moe_ext.route(inputs[0] @ inputs[1].mT, TOP_K).topk_ids.flatten().tolist()))
    assert len(routings) == 3


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("model", MODELS)
def test_dynamic_batch_does_not_recompile(backend: Backend, model: Callable[..., Tensor], compiler: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for position, num_tokens in enumerate((9, 5, 32, 9)):
        inputs = backend.put((tokens(num_tokens, seed=position), *model_weights()))
        torch._dynamo.mark_dynamic(inputs[0], 0)
        with torch._dynamo.config.patch(error_on_recompile=position > 0):
            got = outputs_and_grads(compiled, inputs)
        torch.testing.assert_close(got, outputs_and_grads(model, inputs))


@pytest.mark.parametrize("num_tokens", [0, 1])
@pytest.mark.parametrize("model", MODELS)
def test_hardly_any_tokens(backend: Backend, model: Callable[..., Tensor], num_tokens: int) -> None:
    inputs = backend.put((tokens(num_tokens), *model_weights()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outputs_and_grads(compiled, inputs), outputs_and_grads(model, inputs))


def test_all_options_trace(backend: Backend) -> None:
    """Every branch of the argument checks runs under the compiler at least once."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        "w_gate_up": torch.randn(NUM_EXPERTS, HIDDEN_SIZE, 8, generator=generator),
        "w_down": torch.randn(NUM_EXPERTS, 4, HIDDEN_SIZE, generator=generator),
        "b_gate_up": torch.randn(NUM_EXPERTS, 8, generator=generator),
        "b_down": torch.randn(NUM_EXPERTS, HIDDEN_SIZE, generator=generator),
    }
    weights, bias = backend.put((weights, torch.randn(NUM_EXPERTS, generator=generator)))

    def function(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        routing = moe_ext.route(
            logits, TOP_K, score="sigmoid", bias=bias.bfloat16(), num_groups=5, topk_groups=3, group_top=2,
            group_fill="0", renormalize=True, scale=2.5, nonfinite="error",
        )  # fmt: skip
        y = moe_ext.fused_experts(
            x, **weights, topk_weights=routing.topk_weights.bfloat16(), topk_ids=routing.topk_ids.long(),
            activation="clamped_swiglu", interleaved=True, transposed=True, apply_weights="input", save="none",
            workspace_limit=1 << 20, deterministic=True,
        )  # fmt: skip
        perm = moe_ext.permute(routing.topk_ids, NUM_EXPERTS)
        gather = torch.div(perm.row_to_slot, TOP_K, rounding_mode="floor").clamp(min=0)
        rows = moe_ext.grouped_gemm(
            x, weights["w_gate_up"], perm.expert_offsets, bias=weights["b_gate_up"], transposed=True, gather=gather
        )
        return y, moe_ext.combine(rows, routing.topk_weights, perm)

    inputs = backend.put((tokens(7), torch.randn(7, NUM_EXPERTS, generator=generator)))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(*inputs), function(*inputs))


def test_wrong_arguments_are_named_under_compile() -> None:
    compiled = torch.compile(fused_model, backend="aot_eager")
    w_router, w_gate_up, w_down = model_weights()
    with pytest.raises(Exception, match="w_down must be"):
        compiled(tokens(4), w_router, w_gate_up, w_down[:, 1:])


def test_compiled_autocast(backend: Backend) -> None:
    def function(*inputs: Tensor) -> Tensor:
        with torch.autocast(backend.device, torch.bfloat16):
            return fused_model(*inputs)

    inputs = backend.put((tokens(9), *model_weights()))
    got = outputs_and_grads(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    assert got[0].dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in got[1:])
    torch.testing.assert_close(got, outputs_and_grads(function, inputs))


def test_compiled_func_grad(backend: Backend) -> None:
    x, *weights = backend.put((tokens(9, requires_grad=False), *model_weights(requires_grad=False)))

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: fused_model(x, *weights).square().sum())(x)

    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gradient(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(backend: Backend, strict: bool) -> None:
    weights = backend.put(model_weights())

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(weights)

        def forward(self, x: Tensor) -> Tensor:
            return fused_model(x, *self.weights)

    shapes: Any = {"x": {0: torch.export.Dim("num_tokens")}}
    program = torch.export.export(Model(), backend.put((tokens(9),)), dynamic_shapes=shapes, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "moe_ext.fused_experts.default" in targets
    for num_tokens in (9, 4, 21):
        x = backend.put(tokens(num_tokens, seed=num_tokens))
        torch.testing.assert_close(program.module()(x), fused_model(x, *weights))
