"""StableMoE's two stages (arXiv:2204.08396)."""

import copy

import pytest
import torch
import torch.nn.functional as F

from moe_ext.routing import LinearLogits, StableMoERouter, TokenRouter

T, H, E, V = 40, 8, 4, 12
A = torch.tensor([[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]])


def make() -> StableMoERouter:
    return StableMoERouter(LinearLogits(H, E), TokenRouter(V, E))


def test_first_stage_is_greedy_with_a_sigmoid_weight() -> None:
    router = StableMoERouter(torch.nn.Identity(), TokenRouter(V, E))
    weights, ids, logits = router(A, token_ids=torch.zeros(6, dtype=torch.int64))
    # The worked example of the balance loss: assignment [0, 1, 2, 0, 1, 1], so counts [2, 3, 1, 0].
    assert ids.flatten().tolist() == [0, 1, 2, 0, 1, 1]
    torch.testing.assert_close(weights.flatten(), A.amax(1).sigmoid())
    assert torch.equal(logits, A)


def test_second_stage_same_id_same_expert() -> None:
    router = make()
    token_ids = torch.randint(V, (T,))
    router.begin_second_stage()
    expected = router.token_router(token_ids).argmax(1)
    for _ in range(3):
        x = torch.randn(T, H)
        with torch.no_grad():
            router.logits.weight += torch.randn_like(router.logits.weight)
        weights, ids, logits = router(x, token_ids=token_ids)
        assert torch.equal(ids.flatten().long(), expected)
        # The weight is still that of the affinity with the chosen expert.
        torch.testing.assert_close(logits, x @ router.logits.weight.T)
        torch.testing.assert_close(weights, logits.gather(1, ids.long()).sigmoid())


def test_masked_tokens_go_nowhere_whatever_their_ids() -> None:
    router, mask = make(), torch.arange(T) % 3 > 0
    token_ids = torch.randint(V, (T,)).masked_fill(~mask, -100)
    x = torch.randn(T, H)
    weights, ids, _ = router(x, token_ids=token_ids, token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    assert torch.equal(ids[mask], router(x[mask], token_ids=token_ids[mask]).topk_ids)


def test_distillation_reaches_the_token_router_only_and_makes_it_agree() -> None:
    router = make()
    token_ids = torch.arange(V).repeat(3)
    # Hidden states that are a function of the id, so the choice can be told from it.
    x = torch.randn(V, H).repeat(3, 1)
    optimizer = torch.optim.Adam(router.token_router.parameters(), 0.1)
    for _ in range(60):
        _, topk_ids, _ = router(x, token_ids=token_ids)
        loss = F.cross_entropy(router.token_router(token_ids), topk_ids[:, 0].long(), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert router.logits.weight.grad is None
    first = router(x, token_ids=token_ids).topk_ids
    router.begin_second_stage()
    assert torch.equal(router(x, token_ids=token_ids).topk_ids, first)


def test_gradients_of_each_stage() -> None:
    router = make()
    for _ in range(2):
        router.zero_grad()
        router(torch.randn(T, H), token_ids=torch.randint(V, (T,))).topk_weights.sum().backward()
        assert router.logits.weight.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in router.token_router.parameters())
        router.begin_second_stage()
    assert not any(parameter.requires_grad for parameter in router.token_router.parameters())


def test_weight_gradient() -> None:
    router = make().double()
    x = torch.randn(5, H, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(V, (5,))
    assert torch.autograd.gradcheck(lambda x: router(x, token_ids=ids).topk_weights, x)


def test_the_stage_is_saved_with_the_model() -> None:
    router = make()
    router.begin_second_stage()
    other = make()
    other.load_state_dict(copy.deepcopy(router.state_dict()))
    side = {"token_ids": torch.randint(V, (T,))}
    x = torch.randn(T, H)
    assert torch.equal(other(x, **side).topk_ids, router(x, **side).topk_ids)
    assert bool(other.second_stage)


def test_stays_in_float32() -> None:
    router = make().bfloat16()
    assert router.token_router.embedding.weight.dtype == torch.float32
    output = router(torch.randn(T, H).bfloat16(), token_ids=torch.randint(V, (T,)))
    assert output.topk_weights.dtype == output.router_logits.dtype == torch.float32
    ids = torch.arange(V)
    expected = router.token_router(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router.token_router(ids), expected)


def test_ties_go_to_the_lower_index() -> None:
    router = StableMoERouter(torch.nn.Identity(), TokenRouter(V, E))
    assert router(torch.zeros(3, E), token_ids=torch.zeros(3).long()).topk_ids.tolist() == [[0], [0], [0]]


def test_compiles_as_one_graph_for_both_stages() -> None:
    router = make()
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    x, side = torch.randn(T, H), {"token_ids": torch.randint(V, (T,))}
    for _ in range(2):
        for a, b in zip(compiled(x, **side), router(x, **side), strict=True):
            torch.testing.assert_close(a, b)
        router.second_stage.fill_(True)


def test_errors() -> None:
    router = make()
    with pytest.raises(ValueError, match="token_ids is needed"):
        router(torch.randn(T, H))
    with pytest.raises(ValueError, match=r"token_ids must be in 0\.\.11, got 12"):
        router(torch.randn(1, H), token_ids=torch.tensor([12]))
    with pytest.raises(ValueError, match="vocab_size must be at least 1"):
        TokenRouter(0, E)
