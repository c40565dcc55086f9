"""Hash routing: the tables, the keys, and the lookup (arXiv:2106.04426)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.losses import expert_counts
from moe_ext.routing import (
    ConstantLogits,
    HashSelection,
    Router,
    balanced_table,
    bigram_hash,
    clustered_table,
    dispersed_table,
    multi_hash_table,
    previous_ids,
    random_table,
    sequence_positions,
)

FREQUENCIES = torch.tensor([10, 7, 5, 3, 3, 2])
LOGITS = torch.zeros(6, 3)


def blobs(per_blob: int) -> torch.Tensor:
    """Three well separated groups of embeddings, one after the other."""
    return torch.eye(3).repeat_interleave(per_blob, 0) * 10 + 0.1 * torch.randn(3 * per_blob, 3)


def test_balanced_table_worked_example() -> None:
    table = balanced_table(FREQUENCIES, 3)
    assert table.tolist() == [0, 1, 2, 2, 1, 2]
    assert torch.zeros(3, dtype=torch.int64).index_add_(0, table.long(), FREQUENCIES).tolist() == [10, 10, 10]
    # The ids need not come sorted.
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert balanced_table(FREQUENCIES[order], 3).tolist() == table[order].tolist()


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_balanced_loads_differ_by_at_most_one_id(frequencies: list[int], num_experts: int) -> None:
    table = balanced_table(torch.tensor(frequencies), num_experts)
    loads = [sum(f for f, e in zip(frequencies, table.tolist(), strict=True) if e == x) for x in range(num_experts)]
    assert max(loads) - min(loads) <= max(frequencies)


def test_random_table_is_uniform_and_reproducible() -> None:
    tables = [random_table(40_000, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*tables)
    assert tables[0].dtype == torch.int32
    # Standard deviation of a count: sqrt(40000 / 8 * 7 / 8) = 66.
    assert (tables[0].bincount(minlength=8) - 5000).abs().max() < 5 * 66


def test_clustered_table_keeps_similar_ids_together() -> None:
    table = clustered_table(blobs(7), 3, generator=torch.Generator().manual_seed(0)).reshape(3, 7)
    assert (table == table[:, :1]).all()
    assert sorted(table[:, 0].tolist()) == [0, 1, 2]


def test_dispersed_table_separates_similar_ids() -> None:
    table = dispersed_table(blobs(7), 3, generator=torch.Generator().manual_seed(0)).reshape(3, 7)
    for counts in (row.bincount(minlength=3) for row in table):
        assert counts.max() - counts.min() <= 1
    assert table.flatten().bincount().tolist() == [7, 7, 7]


def test_dispersed_table_with_fewer_ids_than_experts() -> None:
    assert sorted(dispersed_table(torch.randn(3, 2), 8).tolist()) == [0, 1, 2]


def test_clusters_of_equal_points() -> None:
    # Nothing to choose by, and all but one cluster empty.
    assert clustered_table(torch.ones(5, 2), 3).unique().numel() == 1


def test_lookup_has_weight_one_and_no_gradient() -> None:
    router = Router(ConstantLogits(3), HashSelection(balanced_table(FREQUENCIES, 3), 3))
    assert not list(router.parameters())
    weights, ids, logits = router(torch.randn(6, 4), token_ids=torch.tensor([5, 0, 0, 1, 3, 2]))
    assert ids.tolist() == [[2], [0], [0], [1], [2], [2]]
    assert ids.dtype == torch.int32
    assert torch.equal(weights, torch.ones(6, 1))
    assert logits.shape == (6, 3)


def test_previous_ids_and_positions() -> None:
    ids, sequences = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 0, 4, 4, 4])
    assert previous_ids(ids, sequences, first_id=1).tolist() == [1, 5, 1, 7, 8]
    assert previous_ids(ids).tolist() == [0, 5, 6, 7, 8]
    assert sequence_positions(ids, sequences).tolist() == [0, 1, 0, 1, 2]
    assert sequence_positions(ids).tolist() == [0, 1, 2, 3, 4]


def test_keys() -> None:
    table = torch.arange(10, dtype=torch.int32)
    ids, sequences = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 0, 1, 1, 1])

    def look_up(key: str) -> list[int]:
        selection = HashSelection(table, 10, key=key, first_id=2)
        return selection(torch.zeros(5, 10), token_ids=ids, sequence_ids=sequences).topk_ids.flatten().tolist()

    assert look_up("token") == [5, 6, 7, 8, 9]
    assert look_up("previous") == [2, 5, 2, 7, 8]
    assert look_up("position") == [0, 1, 0, 1, 2]
    assert look_up("bigram") == bigram_hash(torch.tensor([2, 5, 2, 7, 8]), ids, 10).tolist()


def test_bigram_hash_spreads() -> None:
    first, second = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    counts = bigram_hash(first.flatten(), second.flatten(), 8).bincount(minlength=8)
    assert (counts - 5000).abs().max() < 5 * 66
    # Order matters: ab is another bigram than ba.
    assert (bigram_hash(first, second, 1000) != bigram_hash(second, first, 1000)).float().mean() > 0.98


def test_multi_hash_is_a_concatenation_of_segments() -> None:
    """M hashes over segments of E experts equal M experts out of M E smaller ones."""
    num_experts, segments, inter, hidden, vocab = 3, 2, 8, 5, 11
    tables = [random_table(vocab, num_experts) for _ in range(segments)]
    token_ids = torch.randint(vocab, (20,))
    x = torch.randn(20, hidden)
    up, down = torch.randn(num_experts, inter, hidden), torch.randn(num_experts, hidden, inter)

    table = multi_hash_table(tables, num_experts)
    weights, ids = HashSelection(table, segments * num_experts)(torch.zeros(20, 6), token_ids=token_ids)
    small_up = up.reshape(num_experts, segments, inter // segments, hidden).transpose(0, 1).flatten(0, 1)
    small_down = down.reshape(num_experts, hidden, segments, -1).permute(2, 0, 1, 3).flatten(0, 1)
    hidden_units = torch.einsum("tkih,th->tki", small_up[ids.long()], x).relu()
    y = torch.einsum("tkhi,tki,tk->th", small_down[ids.long()], hidden_units, weights)

    for t, token in enumerate(token_ids):
        parts = [slice(m * inter // segments, (m + 1) * inter // segments) for m in range(segments)]
        chosen = [int(tables[m][token]) for m in range(segments)]
        full_up = torch.cat([up[e, part] for e, part in zip(chosen, parts, strict=True)])
        full_down = torch.cat([down[e][:, part] for e, part in zip(chosen, parts, strict=True)], dim=1)
        torch.testing.assert_close(y[t], full_down @ (full_up @ x[t]).relu())


def test_masked_tokens_go_nowhere_and_may_have_any_id() -> None:
    selection = HashSelection(balanced_table(FREQUENCIES, 3), 3)
    mask = torch.tensor([True, False, True, False])
    weights, ids = selection(torch.zeros(4, 3), token_ids=torch.tensor([0, -100, 1, 5]), token_mask=mask)
    assert ids.flatten().tolist() == [0, -1, 1, -1]
    assert weights.flatten().tolist() == [1, 0, 1, 0]
    assert expert_counts(ids, 3).tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("key", ["token", "previous", "bigram", "position"])
def test_no_tokens(key: str) -> None:
    selection = HashSelection(torch.zeros(4, dtype=torch.int32), 1, key=key)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert selection(torch.zeros(0, 1), token_ids=nothing, sequence_ids=nothing).topk_ids.shape == (0, 1)


def test_float64_logits_get_float64_weights() -> None:
    selection = HashSelection(torch.zeros(4, dtype=torch.int64), 1)
    assert selection(torch.zeros(1, 1).double(), token_ids=torch.tensor([3])).topk_weights.dtype == torch.float64


@pytest.mark.parametrize("key", ["token", "bigram", "position"])
def test_compiles_as_one_graph(key: str) -> None:
    selection = HashSelection(random_table(50, 8), 8, key=key)
    side = {"token_ids": torch.randint(50, (20,)), "sequence_ids": torch.arange(20) // 5}
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(torch.zeros(20, 8), **side), selection(torch.zeros(20, 8), **side), strict=True):
        assert torch.equal(a, b)


def test_unknown_id_in_a_compiled_graph_goes_nowhere() -> None:
    compiled = torch.compile(HashSelection(random_table(50, 8), 8), fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(2, 8), token_ids=torch.tensor([50, -1])).topk_ids.tolist() == [[-1], [-1]]


def test_errors() -> None:
    selection = HashSelection(torch.zeros(4, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"token_ids must be in 0\.\.3, got 4"):
        selection(LOGITS[:2], token_ids=torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="token_ids is needed"):
        selection(LOGITS)
    with pytest.raises(TypeError, match="token_ids must be an int32 or int64"):
        selection(LOGITS, token_ids=torch.zeros(6))
    with pytest.raises(ValueError, match=r"token_ids must be \[T\] = \(6,\), got shape \(2, 3\)"):
        selection(LOGITS, token_ids=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"token_ids must be \[T\] = \(6,\), got shape \(5,\)"):
        selection(LOGITS, token_ids=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sequence_ids must be \[T\] = \(6,\)"):
        previous_ids(torch.arange(6), torch.arange(5))
    with pytest.raises(ValueError, match=r"position must be in 0\.\.3, got 4"):
        HashSelection(torch.zeros(4, dtype=torch.int32), 2, key="position")(LOGITS, token_ids=torch.zeros(6).long())
    with pytest.raises(ValueError, match="table must hold values"):
        HashSelection(torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match=r"table must be \[V\] or \[V, M\]"):
        HashSelection(torch.zeros(1, 1, 1, dtype=torch.int32), 2)
    with pytest.raises(TypeError, match="table must be int32 or int64"):
        HashSelection(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="key must be one of"):
        HashSelection(torch.zeros(3).int(), 2, key="trigram")
    with pytest.raises(ValueError, match="frequencies must not be negative"):
        balanced_table(torch.tensor([1, -1]), 2)
    with pytest.raises(ValueError, match="num_experts must be at most 2"):
        clustered_table(torch.zeros(2, 4), 3)
    with pytest.raises(ValueError, match=r"embeddings must be \[V, D\]"):
        dispersed_table(torch.zeros(4), 3)
    with pytest.raises(ValueError, match="at least one table"):
        multi_hash_table([], 3)


@pytest.mark.parametrize("value", [-1, 4])
def test_a_segment_does_not_reach_into_its_neighbour(value: int) -> None:
    with pytest.raises(ValueError, match=r"tables must hold values in 0\.\.3"):
        multi_hash_table([torch.zeros(5, dtype=torch.int32), torch.full((5,), value, dtype=torch.int32)], 4)
