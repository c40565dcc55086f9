"""Random routings of any size: what must hold whatever the router says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_ext.losses import (
    cluster_variance_loss,
    communication_balance_loss,
    device_balance_loss,
    expert_counts,
    global_entropy_loss,
    importance_loss,
    load_balancing_loss,
    load_loss,
    overload_loss,
    soft_importance_loss,
    squared_coefficient_of_variation,
    straight_through_balance_loss,
)
from tests.losses.losses import LOSSES, OF_CLUSTERS


@st.composite
def routings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [T, E] with E even, ids [T, 2] of different experts, some of them sentinels, and a mask [T]."""
    num_tokens, num_experts = draw(st.integers(1, 12)), 2 * draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    z = 2 * torch.randn(num_tokens, num_experts, generator=generator, dtype=torch.float64)
    ids = torch.rand(num_tokens, num_experts, generator=generator).topk(2, dim=1).indices.int()
    keep = torch.rand(num_tokens, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    return z, ids, keep


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15, deadline=None)
@given(routings())
def test_masking_is_leaving_out(name: str, routing: tuple[Tensor, Tensor, Tensor]) -> None:
    z, ids, keep = routing
    expected = LOSSES[name](z[keep], ids[keep], None)
    z = z.masked_fill(~keep[:, None], float("nan"))
    torch.testing.assert_close(LOSSES[name](z, ids, keep), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - OF_CLUSTERS))
@settings(max_examples=15, deadline=None)
@given(routings(), st.randoms(use_true_random=False))
def test_names_of_experts_do_not_matter(name: str, routing: tuple[Tensor, Tensor, Tensor], random: object) -> None:
    z, ids, _ = routing
    order = list(range(z.shape[1]))
    random.shuffle(order)
    new_to_old = torch.tensor(order)
    renamed = LOSSES[name](z[:, new_to_old], new_to_old.argsort().int()[ids.long()], None)
    torch.testing.assert_close(renamed, LOSSES[name](z, ids, None), rtol=1e-9, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_values_at_balance(half: int, rounds: int, data: st.DataObject) -> None:
    """Every expert as often, first and later choices alike, and as probable: what the scales promise."""
    num_experts = 2 * half
    top_k = data.draw(st.integers(1, num_experts))
    order = torch.tensor(data.draw(st.permutations(range(num_experts))))
    first = torch.arange(num_experts * rounds)[:, None]
    ids = order[(first + torch.arange(top_k)) % num_experts]
    z = torch.full((len(ids), num_experts), data.draw(st.floats(-3, 3)), dtype=torch.float64)
    score = data.draw(st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"]))

    def balance(**options: object) -> object:
        return pytest.approx(load_balancing_loss(z, ids, score=score, **options).item())

    assert balance() == 1
    assert balance(convention="load") == 1
    assert balance(count="first") == 1
    assert balance(convention="per_token") == top_k
    assert balance(convention="per_token", count="tokens") == top_k
    assert balance(convention="gshard", count="first") == 1 / num_experts**2
    assert device_balance_loss(z, ids, 2, score=score).item() == pytest.approx(1)
    # As many devices as experts: each token is sent to exactly K.
    assert communication_balance_loss(z, ids, num_experts, top_k, score=score).item() == pytest.approx(1)
    uniform = -math.log(num_experts)
    assert straight_through_balance_loss(z, ids, form="entropy").item() == pytest.approx(uniform, abs=1e-7)
    for loss in (
        straight_through_balance_loss(z, ids),
        importance_loss(torch.ones(ids.shape), ids, num_experts),
        soft_importance_loss(z),
        load_loss(z, z, 1.0, num_experts),
        overload_loss(z, ids),
        cluster_variance_loss(z, 2),
        global_entropy_loss(z) - uniform,
    ):
        assert loss.item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(routings())
def test_against_loops(routing: tuple[Tensor, Tensor, Tensor]) -> None:
    z, ids, keep = routing
    ids = ids.masked_fill(torch.rand(ids.shape) < 0.2, -1)
    num_tokens, num_experts = z.shape
    p = z.softmax(-1)
    tokens = [t for t in range(num_tokens) if keep[t] and (ids[t] >= 0).any()]
    n = max(len(tokens), 1)
    mean = [sum(p[t, e].item() for t in tokens) / n for e in range(num_experts)]
    slots = [(t, k) for t in tokens for k in range(2) if ids[t, k] >= 0]
    counts = [sum(ids[t, k].item() == e for t, k in slots) for e in range(num_experts)]
    assert expert_counts(ids, num_experts, token_mask=keep)[0].tolist() == counts

    expert = num_experts / (2 * n) * sum(c * m for c, m in zip(counts, mean, strict=True))
    assert load_balancing_loss(z, ids, token_mask=keep).item() == pytest.approx(expert)
    size = num_experts // 2
    device = communication = 0.0
    for d in range(2):
        of_device = range(d * size, (d + 1) * size)
        probability = sum(mean[e] for e in of_device)
        device += num_experts / (2 * n) * sum(counts[e] for e in of_device) / size * probability
        sent = sum(any(ids[t, k].item() in of_device for k in range(2)) for t in tokens)
        communication += 2 / (2 * n) * sent * probability
    assert device_balance_loss(z, ids, 2, token_mask=keep).item() == pytest.approx(device)
    assert communication_balance_loss(z, ids, 2, 2, token_mask=keep).item() == pytest.approx(communication)

    if slots:
        share = torch.tensor(counts).double() / len(slots)
        squared = 0.5 * (share - 1 / num_experts).square().sum()
        torch.testing.assert_close(straight_through_balance_loss(z, ids, token_mask=keep), squared)
    weights = p.gather(1, ids.long().clamp(min=0))
    importance = torch.zeros(num_experts, dtype=torch.float64)
    for t, k in slots:
        importance[ids[t, k]] += weights[t, k]
    loss = importance_loss(weights, ids, num_experts, token_mask=keep)
    torch.testing.assert_close(loss, squared_coefficient_of_variation(importance))
