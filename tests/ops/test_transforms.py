"""Derivatives other than a plain backward: torch.func, higher orders, forward mode, checkpointing, partial ones."""

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import moe_ext
from tests.ops.recorder import Recorder
from tests.ops.samples import (
    IN_PLACE,
    MODELS,
    NOT_DIFFERENTIABLE,
    NUM_EXPERTS,
    ONCE_DIFFERENTIABLE,
    TOP_K,
    Sample,
    fused_model,
    model_weights,
    samples,
    stepwise_model,
    tokens,
)
from tests.support.backends import Backend

TWICE_DIFFERENTIABLE = [
    sample
    for sample in samples(torch.float64)
    # soft_mix_backward takes what forward made of other arguments: see test_soft_moe.py.
    if sample.op not in (*ONCE_DIFFERENTIABLE, *IN_PLACE, *NOT_DIFFERENTIABLE, "fused_experts", "soft_mix_backward")
    and not sample.op.startswith("route")
]
DIFFERENTIABLE = [sample for sample in samples() if sample.op not in (*IN_PLACE, *NOT_DIFFERENTIABLE)]


def fixed_routing(backend: Backend) -> tuple[moe_ext.Permutation, Tensor, Tensor]:
    ids = backend.put(torch.tensor([[1, 4], [2, 1], [-1, 3], [4, 2], [1, NUM_EXPERTS], [3, 4]], dtype=torch.int32))
    return moe_ext.permute(ids, NUM_EXPERTS), ids, backend.put(torch.rand(ids.shape, dtype=torch.float64))


@pytest.mark.parametrize("model", MODELS)
def test_func_grad(backend: Backend, model: Callable[..., Tensor]) -> None:
    inputs = backend.put((tokens(7), *model_weights()))
    expected = torch.autograd.grad(model(*inputs).square().sum(), inputs)
    detached = tuple(tensor.detach() for tensor in inputs)
    got = torch.func.grad(lambda *args: model(*args).square().sum(), argnums=(0, 1, 2, 3))(*detached)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("model", MODELS)
def test_func_vjp_and_jacrev(backend: Backend, model: Callable[..., Tensor]) -> None:
    x, *weights = backend.put((tokens(4, requires_grad=False), *model_weights(requires_grad=False)))
    y, pull_back = torch.func.vjp(lambda x: model(x, *weights), x)
    jacobian = torch.func.jacrev(lambda x: model(x, *weights))(x)
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(pull_back(cotangent)[0], torch.einsum("ab,abcd->cd", cotangent, jacobian))


@pytest.mark.parametrize("model", MODELS)
def test_vmap_over_grad(backend: Backend, model: Callable[..., Tensor]) -> None:
    weights = backend.put(model_weights(requires_grad=False))
    batches = backend.put(torch.stack([tokens(5, seed, requires_grad=False) for seed in range(3)]))
    gradient = torch.func.grad(lambda x: model(x, *weights).square().sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(batches), torch.stack([gradient(x) for x in batches]))


@pytest.mark.parametrize("sample", DIFFERENTIABLE, ids=str)
def test_func_transforms_take_raw_ops(backend: Backend, sample: Sample) -> None:
    args = backend.put(sample.args)
    first = next(i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.is_floating_point())

    def scalar(value: Tensor) -> Tensor:
        result = sample.overload(*args[:first], value, *args[first + 1 :])
        return (result[0] if isinstance(result, tuple) else result).square().sum()

    if sample.op in ONCE_DIFFERENTIABLE:
        with pytest.raises(NotImplementedError, match=f"moe_ext::{sample.op}: double backward is not supported"):
            torch.func.grad(scalar)(args[first])
        return
    value = args[first].clone().requires_grad_()
    expected = torch.autograd.grad(scalar(value), value)[0]
    torch.testing.assert_close(torch.func.grad(scalar)(args[first]), expected)


@pytest.mark.parametrize("sample", TWICE_DIFFERENTIABLE, ids=str)
def test_second_derivatives(backend: Backend, sample: Sample) -> None:
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        # All of the Jacobian, or two projections of it, where a call takes long.
        assert check(sample.overload, backend.put(sample.with_grad()), fast_mode=backend.is_virtual)


def test_func_grad_of_grad(backend: Backend) -> None:
    perm, _, topk_weights = fixed_routing(backend)
    x, weight = backend.put(
        (torch.randn(6, 8, dtype=torch.float64), torch.randn(NUM_EXPERTS, 3, 8, dtype=torch.float64))
    )

    def penalty(x: Tensor, weight: Tensor, topk_weights: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            rows = moe_ext.grouped_gemm(moe_ext.gather_rows(x, perm), weight, perm.expert_offsets)
            return moe_ext.combine(rows, topk_weights, perm).square().sum()

        return torch.func.grad(energy)(x).square().sum()

    inputs = (x, weight, topk_weights)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(penalty, leaves, fast_mode=backend.is_virtual)
    nested = torch.func.grad(penalty, argnums=(0, 1, 2))(*inputs)
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    torch.testing.assert_close(nested, torch.autograd.grad(penalty(*leaves), leaves))


@pytest.mark.parametrize("model", MODELS)
def test_double_backward_says_that_it_is_unsupported(backend: Backend, model: Callable[..., Tensor]) -> None:
    x, *weights = backend.put((tokens(6), *model_weights()))
    (grad,) = torch.autograd.grad(model(x, *weights).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"moe_ext::\w+_backward: double backward is not supported"):
        grad.sum().backward()


def test_in_place_accumulation_refuses_a_graph(backend: Backend) -> None:
    (sample,) = [sample for sample in samples() if sample.op == "grouped_gemm_wgrad_"]
    with pytest.raises(NotImplementedError, match="grouped_gemm_wgrad_ accumulates in place"):
        sample.overload(*backend.put(sample.with_grad()))
    with torch.no_grad():
        sample.overload(*backend.put(sample.with_grad()))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("sample", DIFFERENTIABLE, ids=str)
def test_forward_mode_is_refused(backend: Backend, sample: Sample, requires_grad: bool) -> None:
    args = backend.put(sample.with_grad() if requires_grad else sample.args)
    message = f"moe_ext::{sample.op} has no forward-mode derivative"
    with forward_ad.dual_level():
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor) and arg.is_floating_point():
                dual = forward_ad.make_dual(arg, torch.ones_like(arg))
                with pytest.raises(NotImplementedError, match=message):
                    sample.overload(*args[:i], dual, *args[i + 1 :])


@pytest.mark.parametrize("model", MODELS)
def test_func_jvp_is_refused(backend: Backend, model: Callable[..., Tensor]) -> None:
    x, *weights = backend.put((tokens(6, requires_grad=False), *model_weights(requires_grad=False)))

    def function(x: Tensor) -> Tensor:
        return model(x, *weights)

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: function(x).sum())(x)

    for transformed in (function, gradient):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            torch.func.jvp(transformed, (x,), (torch.ones_like(x),))
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jacfwd(function)(x)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_activation_checkpointing(backend: Backend, model: Callable[..., Tensor], use_reentrant: bool) -> None:
    inputs = backend.put((tokens(7), *model_weights()))
    expected = torch.autograd.grad(model(*inputs).square().sum(), inputs)
    for tensor in inputs:
        tensor.grad = None
    checkpoint(model, *inputs, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close(tuple(tensor.grad for tensor in inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wanted", "flags"),
    [
        (("x",), (True, False, False)),
        (("w_gate_up",), (False, True, False)),
        (("w_down",), (False, True, False)),
        (("b_gate_up",), (False, True, False)),
        (("b_down",), (False, True, False)),
        (("topk_weights",), (False, False, True)),
        (("x", "b_down", "topk_weights"), (True, True, True)),
    ],
    ids=str,
)
def test_fused_backward_computes_what_is_wanted(
    backend: Backend, wanted: tuple[str, ...], flags: tuple[bool, ...]
) -> None:
    _, ids, topk_weights = fixed_routing(backend)
    arguments = {
        "x": tokens(6, requires_grad=False),
        "w_gate_up": torch.randn(NUM_EXPERTS, 8, 8),
        "w_down": torch.randn(NUM_EXPERTS, 8, 4),
        "b_gate_up": torch.randn(NUM_EXPERTS, 8),
        "b_down": torch.randn(NUM_EXPERTS, 8),
        "topk_weights": topk_weights.float(),
    }
    arguments = backend.put(arguments)

    def grads(names: tuple[str, ...]) -> dict[str, Tensor | None]:
        leaves = {name: value.clone().requires_grad_(name in names) for name, value in arguments.items()}
        moe_ext.fused_experts(**leaves, topk_ids=ids).square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    everything = grads(tuple(arguments))
    with Recorder() as recorder:
        some = grads(wanted)
    assert recorder.args_of("fused_experts_backward")[-3:] == flags
    assert {name for name, grad in some.items() if grad is not None} == set(wanted)
    for name in wanted:
        torch.testing.assert_close(some[name], everything[name])


def test_grouped_gemm_backward_computes_what_is_wanted(backend: Backend) -> None:
    perm, _, _ = fixed_routing(backend)
    rows, weight, bias = backend.put((torch.randn(12, 8), torch.randn(NUM_EXPERTS, 4, 8), torch.randn(NUM_EXPERTS, 4)))
    ops = {"rows": "grouped_gemm", "weight": "grouped_gemm_wgrad", "bias": "segment_sum"}
    for name, op in ops.items():
        leaves = {"rows": rows.clone(), "weight": weight.clone(), "bias": bias.clone()}
        leaves[name].requires_grad_()
        output = moe_ext.grouped_gemm(expert_offsets=perm.expert_offsets, **leaves)
        with Recorder() as recorder:
            output.sum().backward()
        assert [call for call, _ in recorder.calls] == [op]


def test_indices_and_kept_tensors_are_not_differentiable(backend: Backend) -> None:
    (sample,) = [s for s in samples() if s.op == "fused_experts" and s.name == "plain"]
    y, *kept = sample.overload(*backend.put(sample.with_grad()))
    assert y.requires_grad
    assert not any(tensor.requires_grad for tensor in kept)
    routing = moe_ext.route(backend.put(torch.randn(4, NUM_EXPERTS, requires_grad=True)), TOP_K)
    assert routing.topk_weights.requires_grad
    assert not routing.topk_ids.requires_grad


def test_selection_bias_gets_no_gradient(backend: Backend) -> None:
    bias = backend.put(torch.zeros(NUM_EXPERTS, requires_grad=True))
    logits = backend.put(torch.randn(4, NUM_EXPERTS, requires_grad=True))
    weights, _ = moe_ext.route(logits, TOP_K, score="sigmoid", bias=bias)
    weights.sum().backward()
    assert logits.grad is not None
    assert bias.grad is None


@pytest.mark.parametrize("model", [fused_model, stepwise_model])
def test_inference_keeps_nothing_for_backward(backend: Backend, model: Callable[..., Tensor]) -> None:
    inputs = backend.put((tokens(6), *model_weights()))
    with torch.no_grad(), Recorder() as recorder:
        quiet = model(*inputs)
    if model is fused_model:
        assert recorder.args_of("fused_experts")[13] == "none"
    assert not quiet.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model(*inputs), quiet)
    torch.testing.assert_close(model(*inputs).detach(), quiet)
