"""Random routing (THOR, arXiv:2110.04260) and the random baseline of Mod-Squad."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moe_ext.routing import ConstantLogits, RandomLogits, RandomSelection, Router, TopK, random_experts

E = 8


def test_one_expert_for_the_whole_call() -> None:
    selection = RandomSelection(E)
    drawn = set()
    for _ in range(200):
        weights, ids = selection(torch.zeros(5, E))
        assert ids.shape == (5, 1)
        assert ids.dtype == torch.int32
        assert (ids == ids[0]).all()
        assert torch.equal(weights, torch.ones(5, 1))
        drawn.add(int(ids[0]))
    assert drawn == set(range(E))


def test_tokens_are_multinomial() -> None:
    ids = RandomSelection(E, per="token")(torch.zeros(40_000, E)).topk_ids
    # Standard deviation of a count: sqrt(40000 / 8 * 7 / 8) = 66; chi-square with 7 degrees of freedom.
    counts = ids.flatten().bincount(minlength=E).double()
    assert (counts - 5000).abs().max() < 5 * 66
    assert ((counts - 5000).square() / 5000).sum() < 30
    # And neighbours are independent.
    pairs = (ids[:-1, 0] * E + ids[1:, 0]).bincount(minlength=E * E).double()
    expected = 39_999 / E**2
    assert ((pairs - expected).square() / expected).sum() < 63 + 5 * (2 * 63) ** 0.5


def test_tokens_of_a_sequence_stay_together() -> None:
    sequences = torch.arange(400) // 4
    ids = RandomSelection(E, per="sequence")(torch.zeros(400, E), sequence_ids=sequences).topk_ids.reshape(100, 4)
    assert (ids == ids[:, :1]).all()
    assert ids.unique().numel() == E


def test_all_experts_at_evaluation() -> None:
    weights, ids = RandomSelection(E, eval_per="all").eval()(torch.zeros(3, E))
    assert ids.tolist() == [list(range(E))] * 3
    assert torch.equal(weights, torch.full((3, E), 1 / E))


def test_training_and_evaluation_differ() -> None:
    selection = RandomSelection(E, per="call", eval_per="token")
    assert selection(torch.zeros(100, E)).topk_ids.unique().numel() == 1
    assert selection.eval()(torch.zeros(100, E)).topk_ids.unique().numel() > 1


@pytest.mark.parametrize("per", ["call", "token", "sequence"])
def test_same_seed_same_routing(per: str) -> None:
    selection = RandomSelection(E, per=per)
    side = {"sequence_ids": torch.arange(50) // 5}
    seed = torch.tensor([12345])
    first, again = (selection(torch.zeros(50, E), seed=seed, **side).topk_ids for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(7)
    drawn = selection(torch.zeros(50, E), **side).topk_ids
    torch.manual_seed(7)
    assert torch.equal(selection(torch.zeros(50, E), **side).topk_ids, drawn)


def test_experts_stay_in_range() -> None:
    ids = random_experts(torch.tensor([1]), 100_000, 3)
    assert ids.min() == 0
    assert ids.max() == 2


def test_recomputation_meets_the_same_experts() -> None:
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        ids = RandomSelection(E, per="token")(x).topk_ids
        seen.append(ids)
        return x * ids

    x = torch.randn(64, E, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_random_baseline_is_balanced_with_equal_weights() -> None:
    router = Router(RandomLogits(E), TopK(E, 2))
    weights, ids, logits = router(torch.randn(20_000, 4))
    torch.testing.assert_close(weights, torch.full((20_000, 2), 1 / E), atol=7e-4, rtol=0)
    torch.testing.assert_close(logits.mean(), torch.tensor(1.0), atol=1.2e-5, rtol=0)
    torch.testing.assert_close(logits.std(), torch.tensor(1e-3), atol=1e-5, rtol=0)
    assert (ids.flatten().bincount(minlength=E) - 5000).abs().max() < 280
    assert Router(RandomLogits(E), TopK(E, 2))(torch.randn(3, 4).double()).topk_weights.dtype == torch.float64


def test_constant_logits() -> None:
    assert torch.equal(ConstantLogits(E, value=2.0)(torch.randn(3, 4).bfloat16()), torch.full((3, E), 2.0))


def test_no_tokens() -> None:
    for per in ("call", "token", "sequence"):
        selection = RandomSelection(E, per=per)
        assert selection(torch.zeros(0, E), sequence_ids=torch.zeros(0).long()).topk_ids.shape == (0, 1)


@pytest.mark.parametrize("per", ["call", "token", "sequence"])
def test_compiles_as_one_graph(per: str) -> None:
    selection = RandomSelection(E, per=per)
    side = {"sequence_ids": torch.arange(20) // 5, "seed": torch.tensor([99])}
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(torch.zeros(20, E), **side), selection(torch.zeros(20, E), **side), strict=True):
        assert torch.equal(a, b)


def test_errors() -> None:
    with pytest.raises(ValueError, match="per must be one of"):
        RandomSelection(E, per="batch")
    with pytest.raises(ValueError, match="eval_per must be one of"):
        RandomSelection(E, eval_per="mean")
    with pytest.raises(ValueError, match="num_experts must be at least 1"):
        RandomSelection(0)
    with pytest.raises(ValueError, match="sequence_ids is needed"):
        RandomSelection(E, per="sequence")(torch.zeros(3, E))
    with pytest.raises(ValueError, match=r"sequence_ids must be in 0\.\.2, got 3"):
        RandomSelection(E, per="sequence")(torch.zeros(3, E), sequence_ids=torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="std must be at least 0"):
        RandomLogits(E, std=-1.0)
