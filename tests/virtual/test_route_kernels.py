"""route on a GPU: the bits of the CPU, memory traffic with nothing wasted, statistics that chips and seeds agree on."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import emulator as virtual_gpu
from tests.support import backends, virtual
from tests.support.backends import Backend
from tests.support.inputs import make_logits

if TYPE_CHECKING:
    import emulator

put = Backend("virtual:any").put
raw = torch.ops.moe_ext
pytestmark = pytest.mark.virtual
INF, NAN = float("inf"), float("nan")

# One of each way through the kernels: parts of a warp, whole ones with 1 .. 16 registers, rows in memory.
SIZES = ((8, 2), (9, 9), (32, 6), (60, 4), (128, 8), (160, 6), (256, 16), (384, 8), (512, 32), (513, 8), (300, 100))
SCORES = ("softmax", "softmax after", "sigmoid", "sqrtsoftplus", "none")


def options(score: str, **others: Any) -> tuple[Any, ...]:
    """What follows top_k."""
    defaults: dict[str, Any] = {
        "bias": None, "num_groups": 1, "topk_groups": 1, "group_top": 1, "group_fill": "-inf", "renormalize": False,
        "eps": 1e-20, "scale": 2.5, "nonfinite": "propagate",
    }  # fmt: skip
    return (score.split()[0], score.endswith("after"), *(defaults | others).values())


def backward_options(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of the backward op, from those of the forward op."""
    return (*given[:2], *given[7:])


def hard_logits(num_tokens: int, num_experts: int, dtype: torch.dtype) -> Tensor:
    """Close scores, ties, logits far apart, and rows that are not finite."""
    z = make_logits(num_tokens, num_experts, torch.float32)
    z[1] = (2 * z[1]).round()
    z[2] *= 60
    z[3] *= 1e-6
    z[4, ::3] = -INF
    z[5, num_experts // 2] = NAN
    z[6, num_experts - 1] = INF
    z[7] = -INF
    z[8] = 0
    return z.to(dtype)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual.view(torch.int32) == expected.view(torch.int32))[~(actual.isnan() & expected.isnan())].all())


@pytest.mark.parametrize("nonfinite", ["propagate", "sanitize"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_same_bits_as_the_cpu(score: str, dtype: torch.dtype, nonfinite: str) -> None:
    for (num_experts, top_k), renormalize in itertools.product(SIZES, (False, True)):
        logits = hard_logits(11, num_experts, dtype)
        bias = torch.linspace(-0.2, 0.3, num_experts) if renormalize else None
        given = options(score, bias=bias, renormalize=renormalize, nonfinite=nonfinite)
        weights, ids = raw.route(logits, top_k, *given)
        with virtual.ops_on("sm_80", **backends.behaviour(f"{score} {num_experts}")):
            got_weights, got_ids = raw.route(put(logits), top_k, *put(given))
            assert torch.equal(got_ids, ids), num_experts
            assert same_bits(got_weights, weights), num_experts


@pytest.mark.parametrize(
    ("num_experts", "num_groups", "topk_groups", "group_top"),
    [(256, 8, 4, 2), (160, 8, 3, 1), (12, 3, 2, 2), (96, 48, 7, 2), (128, 4, 2, 5), (640, 20, 3, 3)],
)
@pytest.mark.parametrize("group_fill", ["-inf", "0"])
def test_groups_as_on_the_cpu(
    num_experts: int, num_groups: int, topk_groups: int, group_top: int, group_fill: str
) -> None:
    for score, dtype in (("sigmoid", torch.float32), ("none", torch.bfloat16)):
        logits = hard_logits(20, num_experts, dtype)
        given = options(
            score, bias=torch.linspace(-0.5, 0.5, num_experts), num_groups=num_groups, topk_groups=topk_groups,
            group_top=group_top, group_fill=group_fill, renormalize=True,
        )  # fmt: skip
        weights, ids = raw.route(logits, 6, *given)
        with virtual.ops_on("sm_80", **backends.behaviour(f"{num_experts} {score}")):
            got_weights, got_ids = raw.route(put(logits), 6, *put(given))
            assert torch.equal(got_ids, ids)
            assert same_bits(got_weights, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_experts", [8, 16, 64, 128, 256, 512])
def test_every_byte_moves_once(gpu: emulator.Gpu, num_experts: int, dtype: torch.dtype) -> None:
    """Forward reads the logits, backward logits, ids and gradients; each entry of the result is written once."""
    gpu.counters = True
    num_tokens, top_k = 64, 8
    logits = put(make_logits(num_tokens, num_experts, dtype))
    given = options("softmax")
    _, ids = raw.route(logits, top_k, *given)
    grad = put(torch.randn(num_tokens, top_k))
    raw.route_backward(grad, logits, ids, *backward_options(given))
    row, chosen = num_experts * dtype.itemsize, top_k * 4
    assert len(gpu.launches) == 2
    for launch, read, written in zip(gpu.launches, (row, row + 2 * chosen), (2 * chosen, row), strict=True):
        counters = launch.counters
        assert counters.global_sectors == counters.global_sectors_ideal == num_tokens * (read + written) // 32
        assert counters.distinct_sectors_read == num_tokens * read // 32
        assert counters.distinct_sectors_written == num_tokens * written // 32


def test_backward_of_few_choices_reads_few_logits(gpu: emulator.Gpu) -> None:
    """A score that looks at one logit alone needs no others."""
    gpu.counters = True
    logits = put(make_logits(64, 256, torch.float32))
    given = options("sigmoid", renormalize=True)
    _, ids = raw.route(logits, 8, *given)
    raw.route_backward(put(torch.randn(64, 8)), logits, ids, *backward_options(given))
    assert gpu.launches[-1].counters.distinct_sectors_read <= 64 * (8 + 2)


@pytest.mark.parametrize("score", SCORES[:-1])
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (16, 3), (60, 4), (256, 8), (520, 8)])
def test_statistics(num_experts: int, top_k: int, score: str) -> None:
    """Of one chunk of tokens and of many, with dead tokens: as on the CPU, and the same bits on every chip."""
    for num_tokens, dtype in ((0, torch.float32), (7, torch.float64), (31, torch.bfloat16), (130, torch.float32)):
        logits = 2 * make_logits(num_tokens, num_experts, torch.float32)
        logits[1::9] = -INF
        logits[2::9, 0] = NAN
        logits = logits.to(dtype)
        given = options(score, nonfinite="sanitize", renormalize=True)
        expected = raw.route_with_statistics(logits, top_k, *given)
        double = dtype == torch.float64
        grads = tuple(torch.randn_like(expected[i]) for i in (0, 2, 4))
        grad = raw.route_with_statistics_backward(*grads, logits, expected[1], *backward_options(given))
        first: tuple[Tensor, ...] = ()
        for chip, seed in (("sm_80", 0), ("sm_90a", 1)):
            with virtual.ops_on(chip, seed=seed) as gpu:
                got = raw.route_with_statistics(put(logits), top_k, *given)
                assert len(gpu.launches) == (1 if num_tokens <= 32 else 2)
                got_grad = raw.route_with_statistics_backward(
                    *put(grads), put(logits), put(expected[1]), *backward_options(given)
                )
                results = tuple(tensor.clone() for tensor in (*got, got_grad))
            first = first or results
            assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))
        rtol = 1e-12 if double else 1e-5
        torch.testing.assert_close(first[2], expected[2], rtol=rtol, atol=rtol)
        torch.testing.assert_close(first[4], expected[4], rtol=rtol, atol=rtol)
        assert torch.equal(first[1], expected[1])
        assert torch.equal(first[3], expected[3])
        coarse = {torch.bfloat16: 1e-2, torch.float64: 1e-11}.get(dtype, 1e-5)
        torch.testing.assert_close(first[5], grad, rtol=coarse, atol=coarse)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 4), (64, 8), (520, 40)])
def test_backward_of_ids_that_are_none_or_repeat(num_experts: int, top_k: int, score: str) -> None:
    logits = make_logits(20, num_experts, torch.float32)
    given = options(score, renormalize=score != "none")
    ids = raw.route(logits, top_k, *given)[1]
    ids[::3, 0] = ids[::3, 1]
    ids[1::4, 2] = torch.tensor([-1, num_experts, 2**31 - 1, -(2**31)]).repeat(2)[: len(ids[1::4])]
    ids[5] = -1
    grad = torch.randn(20, top_k)
    expected = raw.route_backward(grad, logits, ids, *backward_options(given))
    with virtual.ops_on("sm_80", **backends.behaviour(f"{score} {num_experts}")):
        got = raw.route_backward(put(grad), put(logits), put(ids), *backward_options(given))
        torch.testing.assert_close(got.clone(), expected, rtol=1e-5, atol=1e-6)
        assert not got[5].any()


@pytest.mark.parametrize("bad", [NAN, INF, None])
@pytest.mark.parametrize("num_experts", [6, 100, 600])
def test_nonfinite_error_asserts(num_experts: int, bad: float | None) -> None:
    logits = torch.zeros(40, num_experts)
    given = options("softmax", nonfinite="error")
    with virtual.ops_on("sm_80"):
        raw.route(put(logits), 2, *given)
    logits[39, num_experts - 1] = 0 if bad is None else bad
    if bad is None:
        logits[39] = -INF
    with pytest.raises((RuntimeError, virtual_gpu.Fault), match="router_logits"), virtual.ops_on("sm_80"):
        raw.route(put(logits), 2, *given)
