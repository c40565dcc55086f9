"""What the host asks of a GPU: how many launches, and never to wait or to allocate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import moe_ext
from tests.ops.samples import samples
from tests.support.backends import Backend
from tests.support.cases import Case, Shape, balanced, one_expert, sentinels
from tests.support.inputs import make_inputs

if TYPE_CHECKING:
    import emulator

put = Backend("virtual:any").put

# Of a sample, which is a small problem.
MOST_LAUNCHES = {
    "expert_choice": 3,  # keys by column, selection, the experts of each token
    "auction": 1,
    "sinkhorn": 5,  # exponentials, three iterations, scaling
    "route": 1,
    "route_backward": 1,
    "route_with_statistics": 1,
    "route_with_statistics_backward": 1,
    "route_top_p": 1,
    "noise": 1,
    "soft_mix": 2,  # statistics, product
    "soft_mix_backward": 3,  # gradient of the values, results times their gradients, gradient of the logits
    "permute": 1,
    "slot_positions": 1,
    "expert_histogram": 1,
    "gather_rows": 1,
    "gather_rows_backward": 1,
    "grouped_gemm": 2,  # tiles, product
    "grouped_gemm_wgrad": 1,
    "grouped_gemm_wgrad_": 1,
    "segment_sum": 1,
    "combine": 1,
    "combine_backward": 2,  # which rows have a slot, gradients
    "fused_experts": 4,
    "fused_experts_backward": 9,  # with biases and the first product again
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(MOST_LAUNCHES))
def test_every_op_launches_and_goes_on(gpu: emulator.Gpu, name: str, dtype: torch.dtype) -> None:
    """A few kernels, no waiting, no memory but torch's."""
    found = [sample for sample in samples(dtype) if sample.op == name]
    assert found
    for sample in found:
        args = put(sample.args)
        gpu.clear_launches()
        gpu.clear_host_calls()
        sample.overload(*args)
        calls = gpu.host_calls()
        assert not calls.synchronising, sample.name
        assert not [call for call in calls if "alloc" in call.lower() or "free" in call.lower()], sample.name
        assert 1 <= len(gpu.launches) <= MOST_LAUNCHES[name], (sample.name, kernels(gpu))


def kernels(gpu: emulator.Gpu) -> list[str]:
    return [launch.kernel.partition("<")[0].partition("(")[0] for launch in gpu.launches]


def fused(gpu: emulator.Gpu, problem: Case, dtype: torch.dtype, **options: object) -> tuple[list[str], list[str]]:
    """The kernels of forward and of backward."""
    tensors = put(make_inputs(problem, dtype).tensors())
    leaves = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    gpu.clear_launches()
    y = moe_ext.fused_experts(**tensors, **options)
    forward = kernels(gpu)
    gpu.clear_launches()
    torch.autograd.grad(y, leaves, torch.ones_like(y).contiguous())
    return forward, kernels(gpu)


def test_slot_positions_of_many_slots(gpu: emulator.Gpu) -> None:
    """Count, scan, place; without places for a histogram; to sort by priority one block, or as much again for each of
    four digits."""
    ids, priority = put((torch.randint(0, 8, (9000, 2), dtype=torch.int32), torch.rand(9000)))
    more = put(torch.rand(33000))
    for call, most in (
        (lambda: moe_ext.slot_positions(ids, 8), 3),
        (lambda: moe_ext.slot_positions(ids, 8, priority=priority), 4),
        (lambda: moe_ext.slot_positions(torch.zeros_like(more, dtype=torch.int32)[:, None], 8, priority=more), 15),
        (lambda: moe_ext.slot_positions(ids, 8, priority=priority, group_size=1000), 1),
        (lambda: moe_ext.expert_histogram(ids, 8), 2),
    ):
        gpu.clear_launches()
        call()
        assert len(gpu.launches) <= most, kernels(gpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_experts(gpu: emulator.Gpu, dtype: torch.dtype) -> None:
    """permute, two products, combine; restored routing, activation's gradient, two weight gradients, one product, its
    sum."""
    problem = Case("", Shape(600, 64, 32, 4, 2), sentinels)
    forward, backward = fused(gpu, problem, dtype)
    assert len(forward) <= 4, forward
    assert len(backward) <= 6, backward
    forward, backward = fused(gpu, problem, dtype, save="none")
    assert len(forward) <= 4, forward
    assert len(backward) <= 7, backward


def test_more_slots_than_one_block_sorts(gpu: emulator.Gpu) -> None:
    forward, backward = fused(gpu, Case("", Shape(16400, 8, 8, 3, 1), balanced), torch.bfloat16)
    assert len(forward) <= 6, forward
    assert len(backward) <= 7, backward


@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 8), (4, 2), (16, 4)])
def test_few_rows_need_no_sort(gpu: emulator.Gpu, num_tokens: int, top_k: int) -> None:
    forward, _ = fused(gpu, Case("", Shape(num_tokens, 64, 64, 16, top_k), balanced), torch.bfloat16)
    assert len(forward) <= 3, forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_launch_without_work(gpu: emulator.Gpu, dtype: torch.dtype) -> None:
    """No tokens: nothing but the zeros of the weight gradients and the offsets."""
    forward, backward = fused(gpu, Case("", Shape(0, 64, 64, 16, 2), balanced), dtype)
    assert len(forward) <= 1, forward
    assert len(backward) <= 4, backward


def test_launches_depend_on_sizes_only(gpu: emulator.Gpu) -> None:
    """Not on the routing: what is launched is settled before anything is known of it."""
    shape = Shape(300, 64, 64, 8, 2)
    everywhere, at_one = (fused(gpu, Case("", shape, routing), torch.bfloat16) for routing in (balanced, one_expert))
    assert everywhere == at_one
