"""Dropout of experts, of their outputs, and of the exchange between ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext.routing import (
    ExpertDropout,
    GatingDropout,
    LinearLogits,
    Router,
    drop_experts,
    mask_expert_outputs,
    skip_experts,
)
from tests.routing.capacity_cases import LOGITS, top2


def seed(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int64)


@given(
    num_rows=st.integers(1, 5),
    num_clusters=st.integers(1, 3),
    cluster=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    data=st.data(),
)
def test_every_cluster_keeps_some(
    num_rows: int, num_clusters: int, cluster: int, rate: float, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, cluster))
    options = {"keep": keep, "num_clusters": num_clusters, "seed": seed(data.draw(st.integers(0, 99)))}
    dropped = drop_experts(num_rows, num_clusters * cluster, rate, **options)
    left = (~dropped).view(num_rows, num_clusters, cluster).sum(2)
    assert bool((left >= keep).all())
    if rate == 0.0:
        assert not dropped.any()
    if rate == 1.0:
        assert bool((left == keep).all())
    assert torch.equal(dropped, drop_experts(num_rows, num_clusters * cluster, rate, **options))


def test_the_rate_is_the_share_of_dropped_experts() -> None:
    dropped = drop_experts(2000, 64, 0.25, seed=seed(0))
    assert abs(float(dropped.double().mean()) - 0.25) < 0.0055


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_without_dropout_it_is_top_k(score: str, renormalize: bool) -> None:
    logits = torch.rand(30, 8)
    selection = ExpertDropout(8, 2, rate=0.5, score=score, renormalize=renormalize, scale=2.5).eval()
    weights, ids = selection(logits)
    expected = moe_ext.route(logits, 2, score=score, renormalize=renormalize, scale=2.5)
    assert torch.equal(ids, expected.topk_ids)
    torch.testing.assert_close(weights, expected.topk_weights)


@pytest.mark.parametrize("per", ["batch", "token"])
def test_dropped_experts_are_not_chosen_and_weights_stay(per: str) -> None:
    """The gate value is that of the unmasked logits."""
    logits = torch.randn(50, 8)
    weights, ids = ExpertDropout(8, 2, rate=0.5, per=per, score="softmax")(logits, seed=seed(1))
    dropped = drop_experts(50 if per == "token" else 1, 8, 0.5, keep=2, seed=seed(1)).expand(50, 8)
    assert dropped.any()
    assert not dropped.gather(1, ids.long()).any()
    torch.testing.assert_close(weights, torch.softmax(logits, 1).gather(1, ids.long()))


def test_a_selection_is_always_possible() -> None:
    ids = ExpertDropout(8, 3, rate=1.0, per="token")(torch.randn(40, 8)).topk_ids
    assert all(len(set(row)) == 3 and min(row) >= 0 for row in ids.tolist())


def test_gradients_reach_the_weights_only() -> None:
    logits = (LOGITS + 0.01 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    selection = ExpertDropout(4, 2, rate=0.5, score="sigmoid", renormalize=True)
    assert torch.autograd.gradcheck(lambda logits: selection(logits, seed=seed(2)).topk_weights, logits)


@pytest.mark.parametrize("per", ["token", "slot"])
def test_masked_outputs(per: str) -> None:
    ids = torch.randint(0, 4, (4000, 2), dtype=torch.int32)
    masked = mask_expert_outputs(moe_ext.Routing(torch.rand(4000, 2), ids), 0.2, per=per, seed=seed(0))
    gone = masked.topk_ids < 0
    assert bool((masked.topk_weights[gone] == 0).all())
    assert torch.equal(masked.topk_ids[~gone], ids[~gone])
    assert abs(float(gone.double().mean()) - 0.2) < 0.02
    assert torch.equal(gone[:, 0], gone[:, 1]) == (per == "token")


def test_a_masked_token_gets_zeros() -> None:
    masked = mask_expert_outputs(top2(), 0.5, seed=seed(3))
    gone = masked.topk_ids[:, 0] < 0
    assert 0 < int(gone.sum()) < 6
    x, w_gate_up, w_down = torch.randn(6, 4).double(), torch.randn(4, 6, 4).double(), torch.randn(4, 4, 3).double()
    y = moe_ext.fused_experts(x, w_gate_up, w_down, *masked)
    assert torch.equal(y.abs().sum(1) == 0, gone)


def test_gating_dropout_keeps_tokens_at_home() -> None:
    noise = GatingDropout(1.0, 2, 3)
    logits = torch.randn(20, 8)
    ids = moe_ext.route(noise(logits), 3).topk_ids
    assert sorted(set(ids.flatten().tolist())) == [2, 3, 4]
    assert torch.equal(noise.eval()(logits), logits)


def test_gating_dropout_is_for_the_whole_step() -> None:
    noise = GatingDropout(0.3, 0, 2)
    logits = torch.zeros(5, 4)
    local = [(noise(logits, seed=seed(s)) < 0) for s in range(300)]
    assert all(bool(mask[:, 2:].all()) or not mask.any() for mask in local)
    assert 50 < sum(bool(mask.any()) for mask in local) < 130


def test_skipped_steps() -> None:
    skipped = [bool((skip_experts(top2(), 0.3, seed=seed(s)).topk_ids < 0).all()) for s in range(300)]
    assert 50 < sum(skipped) < 130
    assert (skip_experts(top2(), 0.0).topk_ids >= 0).all()


def test_compiles_in_a_router() -> None:
    router = Router(LinearLogits(8, 6), ExpertDropout(6, 2, rate=0.3, per="token"), noise=GatingDropout(0.5, 0, 3))

    def step(x: Tensor) -> tuple[Tensor, ...]:
        routing = mask_expert_outputs(router(x), 0.2)
        return (*skip_experts(routing, 0.1), x)

    x = torch.randn(10, 8)
    torch.manual_seed(0)
    expected = step(x)
    torch.manual_seed(0)
    actual = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second)


def test_bad_arguments_are_named() -> None:
    for bad, message in (
        (lambda: drop_experts(1, 4, 1.5), "rate must be at most 1, got 1.5"),
        (lambda: drop_experts(1, 4, 0.5, num_clusters=3), "num_clusters must divide num_experts = 4, got 3"),
        (lambda: drop_experts(1, 4, 0.5, keep=5), "keep must be at most 4"),
        (lambda: ExpertDropout(4, 5, rate=0.1), "top_k must be at most 4"),
        (lambda: ExpertDropout(4, 2, rate=0.1, per="row"), "per must be one of"),
        (lambda: mask_expert_outputs(top2(), -0.1), "rate must be at least 0.0, got -0.1"),
        (lambda: GatingDropout(0.1, 0, 0), "num_local_experts must be at least 1, got 0"),
        (lambda: skip_experts(top2(), 2.0), "rate must be at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
