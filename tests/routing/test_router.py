"""The composition: what goes where, masks, jitter scopes, sequences, task tables, and properties of routers."""

import copy

import pytest
import torch
from torch import nn

from moe_ext.losses import expert_counts
from moe_ext.routing import (
    GaussianNoise,
    Jitter,
    LinearLogits,
    NormalizeWeights,
    Router,
    SequenceRouter,
    TaskEmbeddingLogits,
    TaskExperts,
    TopK,
    TopKRouter,
    mean_of_sequences,
)

T, H, E, K = 24, 16, 8, 3
TASK_IDS = torch.arange(T) % 3


def a_router(**options: object) -> Router:
    return Router(LinearLogits(H, E), TopK(E, K, renormalize=True), **options)


def test_is_the_fused_router_where_that_exists() -> None:
    fused = TopKRouter(H, E, K, score="sigmoid", renormalize=True, scale=2.5, bias=True, expert_bias=True)
    router = Router(
        LinearLogits(H, E, bias=True), TopK(E, K, score="sigmoid", renormalize=True, scale=2.5, expert_bias=True)
    )
    nn.init.normal_(fused.bias)
    fused.expert_bias.uniform_(-0.1, 0.1)
    router.logits.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    router.selection.expert_bias.copy_(fused.expert_bias)
    x = torch.randn(T, H)
    for a, b in zip(router(x), fused(x), strict=True):
        assert torch.equal(a, b)


def test_permuting_tokens_permutes_the_output() -> None:
    router, x, order = a_router(), torch.randn(T, H), torch.randperm(T)
    actual, expected = router(x[order]), router(x)
    assert torch.equal(actual.topk_ids, expected.topk_ids[order])
    torch.testing.assert_close(actual.topk_weights, expected.topk_weights[order])


def test_permuting_experts_renumbers_them() -> None:
    router, x, order = a_router(), torch.randn(T, H), torch.randperm(E)
    renumbered = copy.deepcopy(router)
    renumbered.logits.weight.data = router.logits.weight.data[order]
    a, b = renumbered(x), router(x)
    assert torch.equal(order[a.topk_ids.long()], b.topk_ids.long())
    torch.testing.assert_close(a.topk_weights, b.topk_weights)


def test_masked_tokens_are_not_routed_and_not_counted() -> None:
    router, x = a_router(), torch.randn(T, H, requires_grad=True)
    mask = torch.arange(T) % 4 != 0
    weights, ids, logits = router(x, token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    assert torch.equal(ids[mask], router(x[mask]).topk_ids)
    assert int(expert_counts(ids, E).sum()) == int(mask.sum()) * K
    (grad,) = torch.autograd.grad(weights.square().sum(), x)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).any()
    assert logits.shape == (T, E)


def test_float32_under_autocast_and_in_a_narrow_model() -> None:
    router = Router(LinearLogits(H, E), NormalizeWeights(TopK(E, K), p=2.0), noise=GaussianNoise(), jitter=Jitter())
    x = torch.randn(T, H)
    torch.manual_seed(0)
    expected = router(x)
    router.to(torch.bfloat16)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = router(x)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    assert router(x.bfloat16()).topk_weights.dtype == torch.float32
    assert router.double()(x.double()).topk_weights.dtype == torch.float64


def test_the_gate_can_look_at_something_else() -> None:
    # An attribute vector through a layer of its own, as for Uni-Perceiver-MoE.
    attributes = torch.randint(0, 2, (T, 8)).float()
    gate = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), LinearLogits(12, E))
    router = Router(gate, TopK(E, K))
    x = torch.randn(T, H)
    assert torch.equal(router(x, gate_input=attributes).topk_ids, router(attributes).topk_ids)
    assert torch.equal(router(x, gate_input=attributes).router_logits, gate(attributes))


def test_noise_sees_the_gate_input_and_logits_with_noise_come_out() -> None:
    seen = []

    class Shift(nn.Module):
        def forward(self, router_logits, x):
            seen.append(x)
            return router_logits + 1

    router, x, other = a_router(noise=Shift()), torch.randn(T, H), torch.randn(T, H)
    torch.testing.assert_close(router(x, gate_input=other).router_logits, router.logits(other) + 1)
    assert seen[0] is other


def test_jitter_of_the_router_or_of_all() -> None:
    x = torch.randn(T, H)
    router = a_router(jitter=Jitter(0.1))
    assert router.jitter_input(x) is x
    assert not torch.equal(router(x).router_logits, router.logits(x))
    router = a_router(jitter=Jitter(0.1, scope="all"))
    torch.manual_seed(0)
    seen = router.jitter_input(x)
    assert not torch.equal(seen, x)
    assert torch.equal(router(seen).router_logits, router.logits(seen))
    assert router.eval().jitter_input(x) is x
    assert a_router().jitter_input(x) is x


def test_expert_bias_of_the_selection_is_found_and_moved() -> None:
    router = Router(LinearLogits(H, E), NormalizeWeights(TopK(E, K, score="sigmoid", expert_bias=True)))
    assert router.expert_bias is router.selection.selection.expert_bias
    router.update_expert_bias(torch.arange(E))
    assert router.expert_bias.tolist() == pytest.approx([1e-3] * 4 + [-1e-3] * 4)
    assert "expert_bias" not in " ".join(name for name, _ in router.named_parameters())
    assert a_router().expert_bias is None
    with pytest.raises(RuntimeError, match="no expert_bias"):
        a_router().update_expert_bias(torch.arange(E))


def test_bias_updates_balance_the_load_of_a_fixed_batch() -> None:
    router = Router(LinearLogits(H, E), TopK(E, K, score="sigmoid", expert_bias=True))
    x = torch.randn(512, H) + 1

    def violation() -> float:
        counts = expert_counts(router(x).topk_ids, E)[0].float()
        router.update_expert_bias(counts, 1e-2)
        return float(counts.max() / counts.mean() - 1)

    first, *_, last = (violation() for _ in range(100))
    assert first > 0.3
    assert last < 0.1


def test_compiles_as_one_graph() -> None:
    router = Router(LinearLogits(H, E), TopK(E, K), noise=GaussianNoise(), jitter=Jitter())
    x, mask = torch.randn(T, H), torch.arange(T) % 2 == 0
    torch.manual_seed(0)
    actual = torch.compile(router, fullgraph=True, backend="aot_eager")(x, token_mask=mask)
    torch.manual_seed(0)
    for a, b in zip(actual, router(x, token_mask=mask), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_of_input_and_weight() -> None:
    router = a_router().double()
    x = torch.randn(5, H, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: router(x).topk_weights, (x, router.logits.weight))


def test_no_tokens() -> None:
    weights, ids, logits = a_router()(torch.zeros(0, H), token_mask=torch.zeros(0, dtype=torch.bool))
    assert weights.shape == ids.shape == (0, K)
    assert logits.shape == (0, E)


def test_errors() -> None:
    router, x = a_router(), torch.randn(T, H)
    with pytest.raises(TypeError, match="token_mask must be bool"):
        router(x, token_mask=torch.ones(T))
    with pytest.raises(ValueError, match=r"token_mask must be \[num_tokens\] = \(24,\)"):
        router(x, token_mask=torch.ones(T - 1, dtype=torch.bool))


# Sequences --------------------------------------------------------------------------------------------------------


def test_a_sequence_goes_where_its_mean_goes() -> None:
    router, x = a_router(), torch.randn(T, H)
    mask = torch.arange(T) % 8 < torch.tensor([8, 3, 5]).repeat_interleave(8)
    weights, ids, logits = SequenceRouter(router)(x, num_sequences=3, token_mask=mask)
    for sequence in range(3):
        part = slice(8 * sequence, 8 * sequence + 8)
        own = mask[part]
        expected = router(x[part][own].mean(0, keepdim=True))
        torch.testing.assert_close(weights[part][own], expected.topk_weights.expand(int(own.sum()), K))
        assert (ids[part][own] == expected.topk_ids).all()
        torch.testing.assert_close(logits[part], expected.router_logits.expand(8, E))
        assert (ids[part][~own] == -1).all()
        assert (weights[part][~own] == 0).all()


def test_packed_sequences_by_their_ids() -> None:
    router, x = a_router(), torch.randn(T, H)
    sequence_ids = torch.cat([torch.zeros(5), torch.ones(12), torch.full((4,), 2), torch.full((3,), -1)]).int()
    weights, ids, _ = SequenceRouter(router)(x, num_sequences=4, sequence_ids=sequence_ids)
    expected = router(torch.stack([x[:5].mean(0), x[5:17].mean(0), x[17:21].mean(0)]))
    torch.testing.assert_close(weights[:21], expected.topk_weights[sequence_ids[:21].long()])
    assert torch.equal(ids[:21], expected.topk_ids[sequence_ids[:21].long()])
    assert (ids[21:] == -1).all()
    means = mean_of_sequences(x, 4, sequence_ids=sequence_ids)
    assert (means[3] == 0).all()


@pytest.mark.parametrize("packed", [False, True])
def test_padding_may_hold_anything(packed: bool) -> None:
    x, mask = torch.randn(T, H), torch.arange(T) % 8 < 5
    sequence_ids = torch.arange(T) // 8 if packed else None
    spoiled = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    means = mean_of_sequences(spoiled, 3, sequence_ids=sequence_ids, token_mask=mask)
    torch.testing.assert_close(means, x.view(3, 8, H)[:, :5].mean(1))
    (grad,) = torch.autograd.grad(means.sum(), spoiled)
    torch.testing.assert_close(grad, mask[:, None].expand(T, H) / 5)


def test_nan_stays_in_its_sequence() -> None:
    x = torch.randn(T, H)
    x[3] = float("nan")
    assert mean_of_sequences(x, 3)[1:].isfinite().all()


def test_no_tokens_in_no_sequence() -> None:
    assert torch.equal(mean_of_sequences(torch.zeros(0, H), 2), torch.zeros(2, H))


def test_noise_is_one_draw_per_sequence() -> None:
    router = SequenceRouter(a_router(noise=GaussianNoise(1.0), jitter=Jitter(0.5)))
    ids = router(torch.randn(T, H), num_sequences=3).topk_ids.reshape(3, 8, K)
    assert (ids == ids[:, :1]).all()


def test_what_a_layer_asks_a_router_for_reaches_it_through_the_sequences() -> None:
    router = Router(LinearLogits(H, E), TopK(E, K, expert_bias=True), jitter=Jitter(0.1, scope="all"))
    by_sequence, x = SequenceRouter(router), torch.randn(T, H)
    assert not torch.equal(by_sequence.jitter_input(x), x)
    by_sequence.update_expert_bias(torch.arange(E))
    assert by_sequence.expert_bias is router.expert_bias
    assert (router.expert_bias != 0).all()


def test_sequences_in_gradcheck_and_in_one_graph() -> None:
    router = SequenceRouter(a_router()).double()
    mask = torch.arange(T) % 8 < 6
    x = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: router(x, num_sequences=3, token_mask=mask).topk_weights, x)
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, num_sequences=3), router(x, num_sequences=3), strict=True):
        torch.testing.assert_close(a, b)


def test_errors_of_sequences() -> None:
    with pytest.raises(ValueError, match="num_sequences must divide num_tokens = 24, got 5"):
        mean_of_sequences(torch.zeros(T, H), 5)
    with pytest.raises(ValueError, match="num_sequences must be at least 1, got 0"):
        mean_of_sequences(torch.zeros(T, H), 0)
    with pytest.raises(ValueError, match="sequence_ids must be"):
        mean_of_sequences(torch.zeros(T, H), 5, sequence_ids=torch.zeros(3))


# Tasks ------------------------------------------------------------------------------------------------------------


def test_all_tokens_of_a_task_share_their_experts() -> None:
    router = Router(TaskEmbeddingLogits(4, E, 3), TopK(E, K))
    ids = router(torch.randn(T, H), task_ids=TASK_IDS).topk_ids
    # Known without any token of the task: which experts a model for that task alone has to keep.
    beforehand = router(torch.zeros(3, 1), task_ids=torch.arange(3)).topk_ids
    assert torch.equal(ids, beforehand[TASK_IDS])
    counts = expert_counts(ids, E)
    assert int(counts.sum()) == T * K


def test_a_table_of_experts_per_task() -> None:
    table = torch.tensor([[3, 1, 4], [5, -1, -1], [2, 6, -1]])
    router = Router(LinearLogits(H, E), TaskExperts(table))
    weights, ids, _ = router(torch.randn(T, H), task_ids=TASK_IDS)
    assert torch.equal(ids, table[TASK_IDS].int())
    torch.testing.assert_close(
        weights[:3], torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1, 0, 0], [0.5, 0.5, 0]]), rtol=1e-6, atol=0
    )
    weights, ids, _ = Router(LinearLogits(H, E), TaskExperts(table, average=False))(
        torch.randn(T, H), task_ids=torch.full((T,), 7)
    )
    assert (ids == -1).all()
    assert (weights == 0).all()


def test_errors_of_tables() -> None:
    with pytest.raises(TypeError, match="table must hold integers"):
        TaskExperts(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"table must be \[num_tasks, top_k\]"):
        TaskExperts(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="TaskExperts: task_ids is needed"):
        TaskExperts(torch.zeros(2, 2, dtype=torch.int32))(torch.zeros(T, E))
