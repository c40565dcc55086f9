"""What holds for every selection, and for router and experts together, whatever the logits are."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_ext import fused_experts
from moe_ext.losses import expert_counts
from moe_ext.routing import (
    Balanced,
    DenseToSparseSelection,
    ExpertChoice,
    ExpertChoiceCapped,
    NormalizeWeights,
    ReLUSelection,
    Reweigh,
    Router,
    RouterOutput,
    Sinkhorn,
    SoftTopK,
    SparseMixer,
    ThresholdSelection,
    Top2,
    TopK,
    TopP,
)

Make = Callable[[int, int], nn.Module]

BY_TOKENS: dict[str, Make] = {
    "top_k": lambda num_experts, top_k: TopK(num_experts, top_k),
    "sigmoid": lambda num_experts, top_k: TopK(num_experts, top_k, score="sigmoid", renormalize=True, scale=2.5),
    "2_norm": lambda num_experts, top_k: NormalizeWeights(TopK(num_experts, top_k), p=2.0),
    "reweigh": lambda num_experts, top_k: Reweigh(TopK(num_experts, top_k, score="none"), "softmax_after"),
    "top_2": lambda num_experts, top_k: Top2(num_experts),
    "top_p": lambda num_experts, top_k: TopP(num_experts, 0.7),
    "threshold": lambda num_experts, top_k: ThresholdSelection(num_experts, initial_bias=-0.6),
    "relu": lambda num_experts, top_k: ReLUSelection(num_experts),
    "soft_top_k": lambda num_experts, top_k: SoftTopK(num_experts, top_k, temperature=0.5),
    "sparse_mixer": lambda num_experts, top_k: SparseMixer(num_experts, top_k),
    "dense_to_sparse": lambda num_experts, top_k: DenseToSparseSelection(num_experts, threshold=0.1),
}
BY_EXPERTS: dict[str, Make] = {
    "expert_choice": lambda num_experts, top_k: ExpertChoice(num_experts, capacity_factor=top_k),
    "capped": lambda num_experts, top_k: ExpertChoiceCapped(
        num_experts, capacity_factor=top_k, max_experts_per_token=min(top_k + 1, num_experts)
    ),
}
BALANCED: dict[str, Make] = {
    "base": lambda num_experts, top_k: Balanced(num_experts),
    "sinkhorn": lambda num_experts, top_k: Sinkhorn(num_experts, top_k),
}
TRAINED = {*BY_EXPERTS, *BALANCED}
"""Deterministic while training, and only then what they are about."""
ALL = BY_TOKENS | BY_EXPERTS | BALANCED


class Drawn(NamedTuple):
    logits: Tensor
    top_k: int
    order: Tensor
    """Of the tokens."""
    new_to_old: Tensor
    """Of the experts."""
    keep: Tensor


@st.composite
def problems(draw: st.DrawFn) -> Drawn:
    num_tokens, num_experts = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return Drawn(
        2 * torch.randn(num_tokens, num_experts, generator=generator, dtype=torch.float64),
        draw(st.integers(1, num_experts)),
        torch.randperm(num_tokens, generator=generator),
        torch.randperm(num_experts, generator=generator),
        torch.rand(num_tokens, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0])),
    )


def routed(name: str, logits: Tensor, top_k: int, **side: Tensor) -> RouterOutput:
    router = Router(nn.Identity(), ALL[name](logits.shape[1], top_k))
    return router.train(name in TRAINED)(logits, **side)


INDIFFERENT = {"capped", *BALANCED}
"""Where nothing is gained by one choice over another, they go by the index."""


@pytest.mark.parametrize("name", sorted(ALL.keys() - INDIFFERENT))
@settings(max_examples=20)
@given(drawn=problems())
def test_the_order_of_tokens_does_not_matter(name: str, drawn: Drawn) -> None:
    weights, ids, _ = routed(name, drawn.logits, drawn.top_k)
    permuted_weights, permuted_ids, _ = routed(name, drawn.logits[drawn.order], drawn.top_k)
    assert torch.equal(permuted_ids, ids[drawn.order])
    torch.testing.assert_close(permuted_weights, weights[drawn.order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(ALL.keys() - INDIFFERENT))
@settings(max_examples=20)
@given(drawn=problems())
def test_names_of_experts_do_not_matter(name: str, drawn: Drawn) -> None:
    weights, ids, _ = routed(name, drawn.logits, drawn.top_k)
    renamed_weights, renamed_ids, _ = routed(name, drawn.logits[:, drawn.new_to_old], drawn.top_k)
    back = torch.where(renamed_ids >= 0, drawn.new_to_old[renamed_ids.clamp(min=0).long()], -1)
    assert torch.equal(back.int(), ids)
    torch.testing.assert_close(renamed_weights, weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(drawn=problems())
def test_padding_is_never_chosen_and_what_it_holds_does_not_matter(name: str, drawn: Drawn) -> None:
    keep = drawn.keep
    weights, ids, _ = routed(name, drawn.logits, drawn.top_k, token_mask=keep)
    assert (ids[~keep] == -1).all()
    assert (weights[~keep] == 0).all()
    spoiled = routed(name, drawn.logits.masked_fill(~keep[:, None], torch.nan), drawn.top_k, token_mask=keep)
    assert torch.equal(spoiled.topk_ids, ids)
    assert torch.equal(spoiled.topk_weights, weights)
    assert torch.equal(expert_counts(ids, drawn.logits.shape[1]).sum(), (ids[keep] >= 0).sum())
    if name in BY_TOKENS:
        assert torch.equal(ids[keep], routed(name, drawn.logits[keep], drawn.top_k).topk_ids)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10)
@given(drawn=problems())
def test_float32_under_autocast(name: str, drawn: Drawn) -> None:
    logits = drawn.logits.bfloat16()
    expected = routed(name, logits.float(), drawn.top_k)
    with torch.autocast("cpu", torch.bfloat16):
        actual = routed(name, logits, drawn.top_k)
    assert actual.topk_weights.dtype == torch.float32
    assert torch.equal(actual.topk_ids, expected.topk_ids)
    assert torch.equal(actual.topk_weights, expected.topk_weights)


# Router and experts -----------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    x: Tensor
    w_router: Tensor
    w_gate_up: Tensor
    w_down: Tensor

    def route(self, top_k: int) -> RouterOutput:
        return Router(nn.Identity(), TopK(len(self.w_router), top_k, renormalize=True))(self.x @ self.w_router.T)

    def y(self, top_k: int) -> Tensor:
        weights, ids, _ = self.route(top_k)
        return fused_experts(self.x, self.w_gate_up, self.w_down, weights, ids)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, Drawn]:
    drawn = draw(problems())
    num_tokens, num_experts = drawn.logits.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    hidden, inner = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    return Layer(
        normal(num_tokens, hidden),
        normal(num_experts, hidden),
        normal(num_experts, 2 * inner, hidden),
        normal(num_experts, hidden, inner),
    ), drawn


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@settings(max_examples=50)
@given(layers())
def test_permutations_of_a_layer(given: tuple[Layer, Drawn]) -> None:
    layer, drawn = given
    y = layer.y(drawn.top_k)
    close(layer._replace(x=layer.x[drawn.order]).y(drawn.top_k), y[drawn.order])
    close(Layer(layer.x, *(weight[drawn.new_to_old] for weight in layer[1:])).y(drawn.top_k), y)


@settings(max_examples=50)
@given(layers())
def test_all_experts_are_the_dense_mixture(given: tuple[Layer, Drawn]) -> None:
    layer, _ = given
    expected = torch.zeros_like(layer.x)
    p = (layer.x @ layer.w_router.T).softmax(1)
    for e, (up, down) in enumerate(zip(layer.w_gate_up, layer.w_down, strict=True)):
        gate, value = (layer.x @ up.T).chunk(2, dim=1)
        expected += p[:, e, None] * ((torch.nn.functional.silu(gate) * value) @ down.T)
    close(layer.y(len(layer.w_router)), expected)


@settings(max_examples=50)
@given(layers(), st.floats(-8, 8))
def test_linear_in_what_the_experts_put_out(given: tuple[Layer, Drawn], factor: float) -> None:
    layer, drawn = given
    other = layer.w_down.flip(0).cos()
    expected = factor * layer.y(drawn.top_k) + layer._replace(w_down=other).y(drawn.top_k)
    close(layer._replace(w_down=factor * layer.w_down + other).y(drawn.top_k), expected)


@settings(max_examples=50)
@given(layers())
def test_counts_and_experts_without_tokens(given: tuple[Layer, Drawn]) -> None:
    layer, drawn = given
    leaves = Layer(*(tensor.requires_grad_() for tensor in layer))
    counts = expert_counts(leaves.route(drawn.top_k).topk_ids, len(layer.w_router))[0]
    assert counts.sum() == len(layer.x) * drawn.top_k
    of_up, of_down = torch.autograd.grad(leaves.y(drawn.top_k).square().sum(), leaves[2:])
    for e in range(len(counts)):
        used = bool(counts[e] > 0)
        assert bool((of_up[e] != 0).any()) == used
        assert bool((of_down[e] != 0).any()) == used
        assert of_up[e].isfinite().all()
        assert of_down[e].isfinite().all()


def test_gradcheck_of_a_layer() -> None:
    torch.manual_seed(0)
    shapes = ((5, 3), (4, 3), (4, 4, 3), (4, 3, 2))
    layer = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    gaps = Layer(*layer).route(4).router_logits.sort(1).values.diff(dim=1)
    assert gaps.min() > 1e-3, "no choice changes within a finite difference"
    assert torch.autograd.gradcheck(lambda *tensors: Layer(*tensors).y(2), layer)
