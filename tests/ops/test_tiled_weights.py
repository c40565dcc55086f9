"""Weights in the order in which AMX multiplies them: the same bits as from rows, in every case that the op knows."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import moe_ext
from moe_ext import _C
from moe_ext.ops.fused_experts import GATED_ACTIVATIONS, UNGATED_ACTIVATIONS
from tests.support.backends import pinned

HAS_AMX = "amx" in _C.cpu_isas_available()
needs_amx = pytest.mark.skipif(not HAS_AMX, reason="this machine has no AMX")


def make(
    tokens: int, hidden: int, inter: int, experts: int, top_k: int, *, parts: int = 2, transposed: bool = False
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens + hidden)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_gate_up = (randn(experts, parts * inter, hidden) * hidden**-0.5).bfloat16()
    w_down = (randn(experts, hidden, inter) * inter**-0.5).bfloat16()
    if transposed:
        w_gate_up, w_down = w_gate_up.mT.contiguous(), w_down.mT.contiguous()
    return {
        "x": randn(tokens, hidden).bfloat16(),
        "w_gate_up": w_gate_up,
        "w_down": w_down,
        "topk_weights": torch.rand(tokens, top_k, generator=generator),
        "topk_ids": torch.randint(-1, experts, (tokens, top_k), generator=generator),
    }


def assert_same_with_tiles(inputs: dict[str, Tensor], transposed: bool = False, **options: Any) -> None:
    packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"], transposed=transposed)
    with torch.no_grad(), pinned("amx"):
        expected = moe_ext.fused_experts(**inputs, transposed=transposed, **options)
        assert packed.are_tiled
        y = moe_ext.fused_experts(**inputs, transposed=transposed, packed=packed, **options)
    assert torch.equal(y, expected)
    assert packed.num_bytes == inputs["w_gate_up"].nbytes + inputs["w_down"].nbytes


# By panels of rows, of which there are 1 (of one tile and of two), 2, 3, 4 to 7, 8 and more; and none at all.
@needs_amx
@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 40, 80, 130, 300])
@pytest.mark.parametrize(("hidden", "inter"), [(32, 32), (64, 160), (1056, 96)])
def test_any_number_of_rows(tokens: int, hidden: int, inter: int) -> None:
    assert_same_with_tiles(make(tokens, hidden, inter, 2, 2))
    assert_same_with_tiles(make(tokens, hidden, inter, 1, 1))


@needs_amx
@pytest.mark.parametrize("activation", GATED_ACTIVATIONS + UNGATED_ACTIVATIONS)
@pytest.mark.parametrize("apply_weights", ["output", "input"])
def test_activations(activation: str, apply_weights: str) -> None:
    parts = 2 if activation in GATED_ACTIVATIONS else 1
    options = {"activation": activation, "apply_weights": apply_weights}
    inputs = make(45, 64, 96, 3, 2, parts=parts)
    assert_same_with_tiles(inputs, **options)
    biases = {"b_gate_up": torch.randn(3, parts * 96).bfloat16(), "b_down": torch.randn(3, 64).bfloat16()}
    assert_same_with_tiles(inputs, **options, **biases)


@needs_amx
@pytest.mark.parametrize(
    ("interleaved", "transposed", "bias"), list(itertools.product([False, True], [False, True], [False, True]))
)
def test_layouts(interleaved: bool, transposed: bool, bias: bool) -> None:
    biases = {"b_gate_up": torch.randn(4, 2 * 64).bfloat16(), "b_down": torch.randn(4, 96).bfloat16()} if bias else {}
    assert_same_with_tiles(make(50, 96, 64, 4, 2, transposed=transposed), transposed, interleaved=interleaved, **biases)


@needs_amx
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 150),
    hidden=st.integers(1, 6).map(lambda n: 32 * n),
    inter=st.integers(1, 6).map(lambda n: 32 * n),
    experts=st.integers(1, 6),
    top_k=st.integers(0, 4),
)
def test_any_shape(tokens: int, hidden: int, inter: int, experts: int, top_k: int) -> None:
    assert_same_with_tiles(make(tokens, hidden, inter, experts, top_k))


@needs_amx
def test_skew_slabs_and_large_results() -> None:
    inputs = make(400, 256, 128, 8, 4)
    inputs["topk_ids"].fill_(3)
    assert_same_with_tiles(inputs)
    assert_same_with_tiles(inputs, workspace_limit=400 * 4 * 2 * 64)
    # Above 4 MiB results are stored past the caches.
    assert_same_with_tiles(make(1100, 1024, 1024, 3, 3))


@needs_amx
def test_threads_change_no_bit() -> None:
    inputs = make(200, 256, 128, 4, 2)
    packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
    before = torch.get_num_threads()
    results = []
    try:
        with torch.no_grad(), pinned("amx"):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(moe_ext.fused_experts(**inputs, packed=packed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_amx
def test_what_is_not_finite_stays_where_it_is() -> None:
    inputs = make(40, 64, 64, 2, 1)
    inputs["x"][3, 5] = torch.nan
    inputs["x"][7, 0] = torch.inf
    inputs["topk_ids"].clamp_(min=0)
    with torch.no_grad(), pinned("amx"):
        packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
        y = moe_ext.fused_experts(**inputs, packed=packed)
    assert y[3].isnan().all()
    assert not y[7].isfinite().all()
    others = [row for row in range(40) if row not in (3, 7)]
    assert y[others].isfinite().all()


@needs_amx
def test_made_again_for_another_layout_and_another_instruction_set() -> None:
    inputs = make(30, 64, 64, 2, 2)
    packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
    with torch.no_grad():
        for interleaved in (False, True, False):
            with pinned("amx"):
                expected = moe_ext.fused_experts(**inputs, interleaved=interleaved)
                assert torch.equal(moe_ext.fused_experts(**inputs, interleaved=interleaved, packed=packed), expected)
        with pinned("amx"):
            first = packed.tiles(False)
            assert packed.tiles(False)[0] is first[0], "unchanged weights are not copied twice"
            inputs["w_down"].mul_(2)
            assert packed.tiles(False)[0] is first[0]
            assert torch.equal(moe_ext.fused_experts(**inputs, packed=packed), moe_ext.fused_experts(**inputs))
        with pinned("portable"):
            assert not packed.are_tiled
            assert torch.equal(moe_ext.fused_experts(**inputs, packed=packed), moe_ext.fused_experts(**inputs))
        assert packed.num_bytes == 0


@needs_amx
def test_sizes_that_cannot_be_tiled_are_read_as_rows() -> None:
    for hidden, inter in ((48, 64), (64, 40)):
        inputs = make(20, hidden, inter, 2, 2)
        packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
        with torch.no_grad(), pinned("amx"):
            assert not packed.are_tiled
            assert torch.equal(moe_ext.fused_experts(**inputs, packed=packed), moe_ext.fused_experts(**inputs))


@needs_amx
def test_autocast_reads_the_weights() -> None:
    inputs = make(20, 64, 64, 2, 2)
    packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
    with torch.no_grad(), pinned("amx"), torch.autocast("cpu", torch.float16):
        assert torch.equal(moe_ext.fused_experts(**inputs, packed=packed), moe_ext.fused_experts(**inputs))


def tiled_plainly(weight: Tensor, parts: int, interleaved: bool) -> Tensor:
    """[E, G, K] -> [E, panels, parts, steps, 2 tiles, 16 pairs, 16 columns, 2] by reshaping."""
    experts, width, k = weight.shape
    n = width // parts
    split = (
        weight.reshape(experts, n, parts, k).transpose(1, 2) if interleaved else weight.reshape(experts, parts, n, k)
    )
    lines = split.reshape(experts, parts, n // 32, 2, 16, k // 32, 16, 2)
    return lines.permute(0, 2, 1, 5, 3, 6, 4, 7).reshape(experts, n // 32, parts, k // 32, 1024)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("strides", ["rows", "transposed", "gaps"])
def test_the_order_of_tiles(parts: int, interleaved: bool, strides: str) -> None:
    weight = torch.randn(3, parts * 64, 96).bfloat16()
    expected = tiled_plainly(weight, parts, interleaved and parts == 2)
    transposed = strides == "transposed"
    if transposed:
        weight = weight.mT.contiguous()
    elif strides == "gaps":
        weight = torch.stack((weight, weight), dim=-1)[..., 0]
    arguments = (weight, parts, interleaved, transposed)
    assert torch.equal(torch.ops.moe_ext.tile_weights(*arguments), expected)
    opcheck(torch.ops.moe_ext.tile_weights.default, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 64, 64), 1, False, False), "weight must be BFloat16, got Float"),
        ((torch.zeros(64, 64).bfloat16(), 1, False, False), r"weight must be \[E, G, K\]"),
        ((torch.zeros(2, 64, 64).bfloat16(), 3, False, False), "parts must be 1 or 2, got 3"),
        (
            (torch.zeros(2, 96, 64).bfloat16(), 2, False, False),
            "weight must be 64 i by 32 j for each expert, got 96 by 64",
        ),
        (
            (torch.zeros(2, 96, 48).bfloat16(), 1, False, False),
            "weight must be 32 i by 32 j for each expert, got 96 by 48",
        ),
    ],
)
def test_bad_weights(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"moe_ext::tile_weights: {message}"):
        torch.ops.moe_ext.tile_weights(*arguments)


def test_no_gradient() -> None:
    weight = torch.zeros(1, 32, 32).bfloat16().requires_grad_()
    with pytest.raises(NotImplementedError, match="tile_weights has no derivative"):
        torch.ops.moe_ext.tile_weights(weight, 1, False, False).sum().backward()


def raw(inputs: dict[str, Tensor], save: str = "none") -> list[Any]:
    tile = torch.ops.moe_ext.tile_weights
    return [
        inputs["x"], tile(inputs["w_gate_up"], 2, False, False), tile(inputs["w_down"], 1, False, False),
        inputs["topk_weights"], inputs["topk_ids"], None, None, "swiglu", 1.702, 7.0, False, False, "output", save,
        None, False,
    ]  # fmt: skip


@needs_amx
def test_the_raw_op() -> None:
    arguments = raw(make(20, 64, 96, 2, 2))
    with pinned("amx"):
        opcheck(torch.ops.moe_ext.fused_experts.default, tuple(arguments))


@needs_amx
@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x.float(), "with tiled weights x must be BFloat16, got Float"),
        (1, lambda w: w[:, 1:], "w_gate_up must be the tiles of 2 times"),
        (1, lambda w: w[:, :, :1].contiguous(), "w_gate_up must be the tiles of 2 times"),
        (1, lambda w: w[:1], "w_gate_up must have E = 2"),
        (1, lambda w: w.float(), "w_gate_up must be BFloat16, got Float"),
        (2, lambda w: w[:, :, :, 1:].contiguous(), "w_down must be the tiles of 1 times"),
        (2, lambda w: w.flatten(3), "w_down must be"),
        (13, lambda save: "preact", "tiled weights serve inference: save must be none, got preact"),
    ],
)
def test_the_raw_op_checks_tiles(position: int, change: Any, message: str) -> None:
    arguments = raw(make(20, 64, 96, 2, 2))
    arguments[position] = change(arguments[position])
    with pinned("amx"), pytest.raises(RuntimeError, match=f"moe_ext::fused_experts: {message}"):
        torch.ops.moe_ext.fused_experts(*arguments)


def test_tiles_need_amx() -> None:
    arguments = raw(make(20, 64, 96, 2, 2))
    with (
        pinned("portable"),
        pytest.raises(RuntimeError, match="tiled weights need the instruction set amx, got portable"),
    ):
        torch.ops.moe_ext.fused_experts(*arguments)


@needs_amx
def test_tiles_can_be_made_before_the_first_use() -> None:
    inputs = make(20, 64, 64, 2, 2)
    packed = moe_ext.PackedExperts(inputs["w_gate_up"], inputs["w_down"])
    with pinned("amx"):
        first = packed.prepare(interleaved=True).tiles(True)
        assert packed.num_bytes == inputs["w_gate_up"].nbytes + inputs["w_down"].nbytes
        assert packed.tiles(True)[0] is first[0]
