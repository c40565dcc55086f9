"""Experts of very few rows, where a sum's order may go by how many there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moe_ext
from moe_ext import _C, reference
from tests.support.backends import pinned
from tests.support.tolerance import assert_same_bits

SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 97, 130, 511, 512, 513, 1030)


def _integers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def _experts(counts: list[int], hidden_size: int, intermediate_size: int, gated: bool) -> dict[str, torch.Tensor]:
    num_tokens, num_experts = sum(counts), len(counts)
    width = 2 * intermediate_size if gated else intermediate_size
    ids = torch.repeat_interleave(torch.arange(num_experts), torch.tensor(counts))
    return {
        "x": _integers(num_tokens, hidden_size, seed=1),
        "w_gate_up": _integers(num_experts, width, hidden_size, seed=2),
        "w_down": _integers(num_experts, hidden_size, intermediate_size, seed=3),
        "topk_weights": torch.ones(num_tokens, 1),
        "topk_ids": ids[torch.randperm(num_tokens, generator=torch.Generator().manual_seed(4))][:, None],
        "b_gate_up": _integers(num_experts, width, seed=5),
        "b_down": _integers(num_experts, hidden_size, seed=6),
    }


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    hidden_size=st.sampled_from(SIZES),
    intermediate_size=st.sampled_from(SIZES),
    activation=st.sampled_from(("reglu", "relu")),
    interleaved=st.booleans(),
)
def test_sums_of_integers_are_exact(isa, counts, hidden_size, intermediate_size, activation, interleaved):
    tensors = _experts(counts, hidden_size, intermediate_size, gated=activation == "reglu")
    options = {"activation": activation, "interleaved": interleaved}
    with pinned(isa):
        y = moe_ext.fused_experts(**tensors, **options)
    wide = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    assert torch.equal(y.double(), reference.fused_experts(**wide, **options))


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    hidden_size=st.sampled_from(SIZES),
    intermediate_size=st.sampled_from(SIZES),
    transposed=st.booleans(),
)
def test_integers_of_16_bits_have_the_sums_of_any_order(isa, dtype, counts, hidden_size, intermediate_size, transposed):
    tensors = _experts(counts, hidden_size, intermediate_size, gated=True)
    tensors = {name: t if name.startswith("topk") else t.to(dtype) for name, t in tensors.items()}
    if transposed:
        tensors |= {name: tensors[name].mT.contiguous() for name in ("w_gate_up", "w_down")}
    options = {"activation": "reglu", "transposed": transposed}
    with pinned(isa):
        y = moe_ext.fused_experts(**tensors, **options)
        expected = moe_ext.fused_experts(**tensors, **options, deterministic=True)
    assert_same_bits(y, expected, "y")


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
def test_what_is_computed_again_has_the_same_bits(isa):
    """save="none" forms the first product once more: in the order in which forward formed it."""
    tensors = _experts([1, 4, 5, 0, 3], 300, 130, gated=True)
    tensors |= {name: torch.randn_like(tensors[name]) for name in ("x", "w_gate_up", "w_down")}
    gradients = {}
    with pinned(isa):
        for save in ("preact", "none"):
            leaves = {name: tensors[name].clone().requires_grad_() for name in ("x", "w_gate_up", "w_down")}
            moe_ext.fused_experts(**tensors | leaves, save=save).square().sum().backward()
            gradients[save] = [leaf.grad for leaf in leaves.values()]
    for kept, again in zip(gradients["preact"], gradients["none"], strict=True):
        assert_same_bits(again, kept, "a gradient")


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@pytest.mark.parametrize("sizes", [(300, 130), (16, 32), (65, 7), (1, 1), (700, 33)], ids=str)
def test_bits_do_not_depend_on_how_weights_are_stored(isa, sizes):
    tensors = _experts([1, 4, 5, 0, 3], *sizes, gated=True)
    tensors |= {name: torch.randn_like(tensors[name]) for name in ("x", "w_gate_up", "w_down")}
    turned = {name: tensors[name].mT.contiguous() for name in ("w_gate_up", "w_down")}
    with pinned(isa):
        expected = moe_ext.fused_experts(**tensors)
        assert_same_bits(moe_ext.fused_experts(**tensors | turned, transposed=True), expected, "y")


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(300, 130), (16, 32), (65, 7), (1, 1), (700, 33)], ids=str)
def test_bits_do_not_depend_on_how_weights_are_read(isa, dtype, sizes):
    """One row after the other is what other processors than Intel's do."""
    tensors = _experts([1, 4, 5, 2, 0, 3], *sizes, gated=True)
    tensors |= {name: torch.randn_like(tensors[name]) for name in ("x", "w_gate_up", "w_down")}
    tensors = {name: t if name.startswith("topk") else t.to(dtype) for name, t in tensors.items()}
    usual = _C.cpu_reads_side_by_side()
    try:
        with pinned(isa):
            _C.set_cpu_reads_side_by_side(not usual)
            other = moe_ext.fused_experts(**tensors)
            _C.set_cpu_reads_side_by_side(usual)
            assert_same_bits(moe_ext.fused_experts(**tensors), other, "y")
    finally:
        _C.set_cpu_reads_side_by_side(usual)


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=str)
def test_a_row_that_is_not_finite_spoils_no_other(isa, value):
    tensors = _experts([2, 4, 3], 200, 64, gated=True)
    spoiled = tensors | {"x": tensors["x"].clone()}
    spoiled["x"][4, 100:] = value
    with pinned(isa):
        clean, y = moe_ext.fused_experts(**tensors), moe_ext.fused_experts(**spoiled)
    others = torch.arange(9) != 4
    assert_same_bits(y[others], clean[others], "other rows")
    assert not y[4].isfinite().all()
