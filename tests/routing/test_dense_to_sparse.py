"""EvoMoE's dense-to-sparse gate (arXiv:2112.14397)."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moe_ext.routing import DenseToSparseSelection, annealed_temperature, diversify_experts

E = 6


def test_selects_what_is_above_the_threshold() -> None:
    logits = torch.randn(50, E)
    weights, ids = DenseToSparseSelection(E, threshold=0.15, temperature=0.5).eval()(logits)
    probabilities = (logits / 0.5).softmax(1)
    for row, chosen, weight in zip(probabilities, ids.tolist(), weights, strict=True):
        expected = sorted((e for e in range(E) if row[e] > 0.15), key=lambda e: -float(row[e]))
        assert chosen == expected + [-1] * (E - len(expected))
        torch.testing.assert_close(weight[: len(expected)], row[expected])


def test_dense_at_first_sparse_at_last() -> None:
    selection = DenseToSparseSelection(E, threshold=0.5 / E, gumbel=False)
    logits = torch.randn(200, E)
    used = []
    for step in range(11):
        selection.temperature.fill_(annealed_temperature(step, 10, start=20.0, end=0.02))
        used.append(float((selection(logits).topk_ids >= 0).sum(1).double().mean()))
    assert used == sorted(used, reverse=True)
    assert used[0] == E
    assert used[-1] < 1.1
    selection.make_sparse()
    assert torch.equal(selection(logits).topk_ids[:, 0].long(), logits.argmax(1))
    assert selection(logits).topk_ids.shape == (200, 1)


def test_the_best_expert_always_stays() -> None:
    weights, ids = DenseToSparseSelection(E, threshold=0.99).eval()(torch.zeros(3, E))
    assert ids.tolist() == [[0] + [-1] * (E - 1)] * 3
    torch.testing.assert_close(weights[:, 0], torch.full((3,), 1 / E))


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.randn(E)
    selection = DenseToSparseSelection(E, threshold=0.5, temperature=1.0)
    first = selection(logits.expand(40_000, E)).topk_ids[:, 0]
    frequencies = first.bincount(minlength=E) / 40_000
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=0.012, rtol=0)
    # Not at evaluation.
    assert selection.eval()(logits.expand(100, E)).topk_ids[:, 0].unique().numel() == 1


def test_same_seed_same_routing_also_when_recomputed() -> None:
    selection = DenseToSparseSelection(E, threshold=0.2)
    logits = torch.randn(30, E)
    seed = torch.tensor([5])
    for a, b in zip(selection(logits, seed=seed), selection(logits, seed=seed), strict=True):
        assert torch.equal(a, b)
    seen = []

    def layer(z: torch.Tensor) -> torch.Tensor:
        weights, ids = selection(z)
        seen.append(ids)
        return weights.square().sum()

    checkpoint(layer, logits.requires_grad_(), use_reentrant=False).backward()
    assert torch.equal(*seen)


def test_gradcheck() -> None:
    logits = torch.randn(4, E, dtype=torch.float64, requires_grad=True)
    selection = DenseToSparseSelection(E, threshold=0.1, max_experts=3)
    seed = torch.tensor([1])
    assert torch.autograd.gradcheck(lambda z: selection(z, seed=seed).topk_weights, logits)
    selection.make_sparse(2)
    assert torch.autograd.gradcheck(lambda z: selection(z, seed=seed).topk_weights, logits)


def test_annealing() -> None:
    assert [annealed_temperature(s, 10) for s in (0, 5, 10, 99)] == pytest.approx([2.0, 1.15, 0.3, 0.3])
    exponential = [annealed_temperature(s, 10, start=4.0, end=1.0, shape="exponential") for s in (0, 5, 10)]
    assert exponential == pytest.approx([4.0, 2.0, 1.0])


def test_diversified_copies_differ_in_what_they_lost() -> None:
    weight = torch.randn(64, 64)
    copies = diversify_experts(weight, 4, mask_rate=0.25, generator=torch.Generator().manual_seed(0))
    assert copies.shape == (4, 64, 64)
    lost = copies == 0
    assert torch.equal(copies[~lost], weight.expand(4, 64, 64)[~lost])
    assert float(lost.double().mean()) == pytest.approx(0.25, abs=0.015)
    assert float((lost[0] & lost[1]).double().mean()) == pytest.approx(0.0625, abs=0.017)
    assert torch.equal(diversify_experts(weight, 2, mask_rate=0.0), weight.expand(2, 64, 64))


def test_compiles_as_one_graph() -> None:
    selection = DenseToSparseSelection(E, threshold=0.2)
    logits, seed = torch.randn(30, E), torch.tensor([5])
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(logits, seed=seed), selection(logits, seed=seed), strict=True):
        torch.testing.assert_close(a, b)


def test_errors() -> None:
    with pytest.raises(ValueError, match="threshold must be below 1"):
        DenseToSparseSelection(E, threshold=1.0)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        DenseToSparseSelection(E, threshold=0.1, temperature=0.0)
    with pytest.raises(ValueError, match="max_experts must be at most 6"):
        DenseToSparseSelection(E, threshold=0.1, max_experts=7)
    with pytest.raises(ValueError, match="top_k must be at most 6"):
        DenseToSparseSelection(E, threshold=0.1).make_sparse(7)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        annealed_temperature(0, 0)
    with pytest.raises(ValueError, match="shape must be one of"):
        annealed_temperature(0, 1, shape="cosine")
    with pytest.raises(ValueError, match="mask_rate must be below 1"):
        diversify_experts(torch.zeros(2), 2, mask_rate=1.0)
