"""Locality-sensitive hashing of hidden states, as keys of a hash router."""

import math

import pytest
import torch

from moe_ext.routing import HashSelection, LSHBuckets, random_table

H = 16


def test_buckets_by_hand() -> None:
    buckets = LSHBuckets(2, 2)
    buckets.planes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]])
    assert buckets(x).tolist() == [3, 2, 1, 0, 0]


def test_depends_on_the_direction_only() -> None:
    buckets = LSHBuckets(H, 12)
    x = torch.randn(50, H)
    assert torch.equal(buckets(x), buckets(3 * x))
    # The other side of every plane.
    assert torch.equal(buckets(-x), buckets.num_buckets - 1 - buckets(x))


def test_a_bit_is_shared_with_probability_one_minus_the_angle() -> None:
    buckets = LSHBuckets(H, 30)
    first, other = torch.randn(2, 2000, H)
    cosine = torch.nn.functional.cosine_similarity(first, other)
    differing = buckets(first) ^ buckets(other)
    shared = 1 - torch.stack([(differing >> bit) & 1 for bit in range(30)]).double().mean()
    expected = 1 - (cosine.acos() / math.pi).mean()
    assert float(shared) == pytest.approx(float(expected), abs=0.02)


def test_as_a_router() -> None:
    buckets = LSHBuckets(H, 6)
    table = random_table(buckets.num_buckets, 4)
    selection = HashSelection(table, 4)
    x = torch.randn(100, H)
    weights, ids = selection(torch.zeros(100, 4), token_ids=buckets(x))
    assert torch.equal(ids[:, 0], table[buckets(x)])
    assert torch.equal(weights, torch.ones(100, 1))


def test_planes_are_saved_not_trained() -> None:
    buckets = LSHBuckets(H, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert not list(buckets.parameters())
    again = LSHBuckets(H, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(buckets.state_dict()["planes"], again.planes)


def test_compiles_as_one_graph() -> None:
    buckets = LSHBuckets(H, 6)
    x = torch.randn(20, H)
    assert torch.equal(torch.compile(buckets, fullgraph=True, backend="aot_eager")(x), buckets(x))


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_bits must be at most 30"):
        LSHBuckets(H, 31)
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        LSHBuckets(0, 3)
