import pytest
import torch
from torch import Tensor

from moe_ext.reference import ACTIVATIONS, fused_experts
from tests.reference import brute_force
from tests.support.cases import CASES, SMALL_CASES, Case, case
from tests.support.inputs import make_inputs
from tests.support.truth import check_against_truth


@pytest.mark.parametrize(("apply_weights", "expected"), [("input", 2.362521), ("output", 3.074099)])
def test_llama4_weights_the_input(apply_weights: str, expected: float) -> None:
    one, weight = torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([[1.2]], dtype=torch.float64).sigmoid()
    y = fused_experts(
        2 * one[0], one, one, weight, torch.tensor([[0]]), activation="relu2", apply_weights=apply_weights
    )
    assert y.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_brute_force(case: Case, activation: str, apply_weights: str) -> None:
    for bias in (False, True):
        inputs = make_inputs(case, torch.float64, activation=activation, bias=bias).tensors()
        actual = fused_experts(**inputs, activation=activation, limit=1.5, apply_weights=apply_weights)
        lists = {name: tensor.tolist() for name, tensor in inputs.items()}
        expected = brute_force.fused_experts(**lists, activation=activation, limit=1.5, apply_weights=apply_weights)
        expected = torch.tensor(expected, dtype=torch.float64).view_as(actual)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layouts_hold_the_same_experts(activation: str) -> None:
    results = [
        fused_experts(
            **make_inputs(
                case("odd_sizes_sentinels"), torch.float64, activation=activation, bias=True,
                interleaved=interleaved, transposed=transposed,
            ).tensors(),
            activation=activation, interleaved=interleaved, transposed=transposed,
        )
        for interleaved in (False, True)
        for transposed in (False, True)
    ]  # fmt: skip
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("activation", ["swiglu", "clamped_swiglu", "gelu"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(case: Case, activation: str, apply_weights: str) -> None:
    inputs = make_inputs(case, torch.float64, activation=activation, bias=True).tensors()
    topk_ids = inputs.pop("topk_ids")
    names = list(inputs)

    def run(*tensors: Tensor) -> Tensor:
        return fused_experts(
            **dict(zip(names, tensors, strict=True)),
            topk_ids=topk_ids, activation=activation, apply_weights=apply_weights,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs.values()])


def eager_float32(x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
    """The loop over experts that model code writes, in float32 whatever the dtype of the data."""
    y = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(w_down.shape[0]):
        token, k = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token].float() @ w_gate_up[expert].float().T).chunk(2, -1)
        out = (torch.nn.functional.silu(gate) * up) @ w_down[expert].float().T
        y = y.index_add(0, token, out * topk_weights[token, k, None].float())
    return y.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_better_rounded_loop_is_within_the_tolerance(case: Case, dtype: torch.dtype) -> None:
    """The reference is a fair yardstick: what rounds less than it does passes, with all gradients."""
    check_against_truth(eager_float32, fused_experts, lambda seed: make_inputs(case, dtype, seed=seed).tensors())


@pytest.mark.parametrize("apply_weights", ["output", "input"])
def test_sentinels_add_nothing_and_get_no_gradient(apply_weights: str) -> None:
    inputs = make_inputs(case("sentinels"), torch.float64, bias=True).tensors()
    outside = (inputs["topk_ids"] < 0) | (inputs["topk_ids"] >= 7)
    inputs["topk_weights"] = torch.where(outside, float("nan"), inputs["topk_weights"]).requires_grad_()
    y = fused_experts(**inputs, apply_weights=apply_weights)
    assert y.isfinite().all()
    y.square().sum().backward()
    gradient = inputs["topk_weights"].grad
    assert gradient is not None
    assert (gradient[outside] == 0).all()
    assert (gradient[~outside] != 0).all()


def test_experts_without_rows_get_exact_zeros() -> None:
    inputs = make_inputs(case("half_empty"), bias=True).tensors()
    weights = [inputs[name].requires_grad_() for name in ("w_gate_up", "w_down", "b_gate_up", "b_down")]
    fused_experts(**inputs).square().sum().backward()
    for weight in weights:
        assert weight.grad is not None
        assert (weight.grad[0::2] == 0).all()
        assert (weight.grad[1::2] != 0).any(dim=1).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_argument_keeps_its_dtype_and_gets_a_gradient_of_it(dtype: torch.dtype) -> None:
    for name in ("balanced", "no_tokens", "only_sentinels"):
        inputs = make_inputs(case(name), dtype, bias=True).tensors()
        leaves = {key: tensor.requires_grad_() for key, tensor in inputs.items() if key != "topk_ids"}
        y = fused_experts(**inputs)
        assert y.dtype == dtype
        y.sum().backward()
        for key, leaf in leaves.items():
            assert leaf.grad is not None, key
            assert (leaf.grad.dtype, leaf.grad.shape) == (leaf.dtype, leaf.shape)


def test_options_that_choose_how_do_not_change_what() -> None:
    inputs = make_inputs(case("balanced")).tensors()
    plain = fused_experts(**inputs)
    assert torch.equal(plain, fused_experts(**inputs, save="none", workspace_limit=4096, deterministic=True))


def test_unknown_apply_weights() -> None:
    with pytest.raises(ValueError, match="apply_weights"):
        fused_experts(**make_inputs(case("balanced")).tensors(), apply_weights="both")
