"""CUDA graphs: an op is captured once and replayed with other values and another routing."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support import virtual
from tests.support.backends import Backend
from tests.support.cases import Case, Shape, balanced, one_expert, only_sentinels, sentinels
from tests.support.inputs import make_inputs
from tests.support.tolerance import assert_same_bits

if TYPE_CHECKING:
    import emulator

put = Backend("virtual:any").put


class Graph:
    """What was launched inside ``captured()``."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(virtual.LIBRARY))
        self.handle = ctypes.c_void_p()
        self.nodes = ctypes.c_size_t()

    def replay(self) -> None:
        assert self.library.moe_virtual_replay(self.handle) == 0

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        assert self.library.moe_virtual_begin_capture() == 0
        try:
            yield
        finally:
            error = self.library.moe_virtual_end_capture(ctypes.byref(self.handle), ctypes.byref(self.nodes))
        assert error == 0


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.library.moe_virtual_forget(graph.handle)


def layer(tensors: dict[str, Tensor], grad_y: Tensor, **options: object) -> list[Tensor]:
    """y and the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    named = dict(zip((name for name, tensor in tensors.items() if tensor.is_floating_point()), leaves, strict=True))
    y = moe_ext.fused_experts(**tensors | named, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [8, 100])
@pytest.mark.parametrize("save", ["preact", "none"])
def test_layer_with_new_routing(
    gpu: emulator.Gpu, graph: Graph, save: str, num_tokens: int, dtype: torch.dtype
) -> None:
    """Captured with a balanced routing, replayed with all tokens at one expert, with sentinels, and with those alone:
    each time the bits of a run without a graph."""
    shape = Shape(num_tokens, 64, 32, 8, 2)
    inputs = put(make_inputs(Case("", shape, balanced), dtype, bias=True).tensors())
    grad_y = put(torch.randn(num_tokens, 64).to(dtype))
    with graph.captured():
        outputs = layer(inputs, grad_y, save=save)
    assert graph.nodes.value >= 9
    for seed, routing in enumerate((balanced, one_expert, sentinels, only_sentinels)):
        fresh = make_inputs(Case("", shape, routing), dtype, bias=True, seed=seed).tensors()
        for name, tensor in fresh.items():
            inputs[name].copy_(tensor)
        graph.replay()
        expected = layer(put(fresh), grad_y, save=save)
        for position, (got, want) in enumerate(zip(outputs, expected, strict=True)):
            assert_same_bits(got, want, f"{routing.__name__}: output {position}")


def test_route_and_permute(gpu: emulator.Gpu, graph: Graph) -> None:
    logits = put(torch.randn(50, 16))
    with graph.captured():
        routing = moe_ext.route(logits, 4, score="sigmoid", renormalize=True)
        outputs = [*routing, *moe_ext.permute(routing.topk_ids, 16)]
    for _ in range(2):
        logits.copy_(torch.randn(50, 16))
        graph.replay()
        routing = moe_ext.route(logits, 4, score="sigmoid", renormalize=True)
        expected = [*routing, *moe_ext.permute(routing.topk_ids, 16)]
        for got, want in zip(outputs, expected, strict=True):
            assert_same_bits(got, want, "replayed")


def test_many_slots_are_sorted_in_a_graph(gpu: emulator.Gpu, graph: Graph) -> None:
    """Three launches and what clears their counters, each time anew."""
    ids = put(torch.randint(5, (20000, 1), dtype=torch.int32))
    with graph.captured():
        outputs = moe_ext.permute(ids, 5)
    for _ in range(2):
        ids.copy_(torch.randint(-1, 6, (20000, 1), dtype=torch.int32))
        graph.replay()
        for got, want in zip(outputs, moe_ext.permute(ids, 5), strict=True):
            assert_same_bits(got, want, "replayed")
