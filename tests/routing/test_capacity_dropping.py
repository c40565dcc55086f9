"""Which slots a capacity drops, and what becomes of the weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext.ops.types import Routing
from moe_ext.routing import dynamic_capacity, limit_capacity, random_second_expert, reroute_overflow
from moe_ext.routing._random import random
from tests.routing.capacity_cases import (
    LOGITS,
    TOP2_IDS,
    TOP2_WEIGHTS,
    counts_of,
    first_come,
    is_close,
    routings,
    top2,
    visiting_order,
)

ORDERS = ["token", "choice", "priority", "score", "random"]


def seeds(count: int) -> list[Tensor]:
    return [torch.tensor([seed], dtype=torch.int64) for seed in range(count)]


def test_the_example_is_the_example() -> None:
    assert top2().topk_ids.tolist() == TOP2_IDS
    assert is_close(top2().topk_weights, TOP2_WEIGHTS)


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ("choice", [[1, 0], [1, 1], [1, 0], [1, 1], [1, 0], [0, 0]]),
        ("token", [[1, 1], [1, 1], [1, 1], [0, 1], [0, 0], [0, 0]]),
        ("priority", [[1, 0], [1, 1], [1, 0], [1, 1], [0, 0], [1, 0]]),
    ],
)
def test_worked_example(order: str, kept: list[list[int]]) -> None:
    """Two places at each expert: five slots of twelve go. Priorities are the probabilities, not their shares."""
    routing = limit_capacity(top2(renormalize=False), 4, 2, order=order)
    assert (routing.topk_ids >= 0).long().tolist() == kept
    assert torch.equal(routing.topk_ids.where(routing.topk_ids >= 0, -1), routing.topk_ids)
    assert is_close(routing.topk_weights, (top2(renormalize=False).topk_weights * torch.tensor(kept)).tolist())


def test_weights_are_kept_or_renormalized() -> None:
    kept = limit_capacity(top2(), 4, 2).topk_weights
    assert is_close(kept[0], [0.731059, 0.0])
    again = limit_capacity(top2(), 4, 2, renormalize=True).topk_weights
    expected = [[1, 0], [0.731059, 0.268941], [1, 0], [0.880797, 0.119203], [1, 0], [0, 0]]
    assert is_close(again, expected)


@given(drawn=routings(), capacity=st.integers(0, 10), order=st.sampled_from(ORDERS[:4]), group_size=st.integers(1, 10))
def test_every_order_is_a_loop(drawn: tuple[Routing, int], capacity: int, order: str, group_size: int) -> None:
    routing, num_experts = drawn
    weights, ids = limit_capacity(routing, num_experts, capacity, order=order, group_size=group_size)
    slots = visiting_order(order, routing.topk_weights)
    expected = first_come(routing.topk_ids, num_experts, capacity, slots, group_size)
    assert torch.equal(ids, routing.topk_ids.where(expected, -1))
    assert torch.equal(weights, routing.topk_weights.where(expected, 0.0))


@given(drawn=routings(), capacity=st.integers(0, 10), order=st.sampled_from(ORDERS), as_tensor=st.booleans())
def test_an_expert_keeps_what_it_can(drawn: tuple[Routing, int], capacity: int, order: str, as_tensor: bool) -> None:
    """min(c, C) slots of each expert, so what is dropped in all does not depend on the order."""
    routing, num_experts = drawn
    limit = torch.tensor(capacity, dtype=torch.int32) if as_tensor else capacity
    ids = limit_capacity(routing, num_experts, limit, order=order).topk_ids
    counts = counts_of(routing.topk_ids, num_experts)
    assert counts_of(ids, num_experts) == [min(count, capacity) for count in counts]
    assert bool(((ids == routing.topk_ids) | (ids == -1)).all())


@given(drawn=routings(), order=st.sampled_from(ORDERS))
def test_enough_room_drops_nothing(drawn: tuple[Routing, int], order: str) -> None:
    routing, num_experts = drawn
    limited = limit_capacity(routing, num_experts, dynamic_capacity(routing.topk_ids, num_experts), order=order)
    assert torch.equal(limited.topk_ids, routing.topk_ids)
    assert torch.equal(limited.topk_weights, routing.topk_weights)


def test_a_seed_replays_random_dropping() -> None:
    routing = Routing(torch.ones(200, 1), torch.zeros(200, 1, dtype=torch.int32))
    first, again, other = (limit_capacity(routing, 1, 50, order="random", seed=s) for s in (*seeds(1) * 2, seeds(2)[1]))
    assert torch.equal(first.topk_ids, again.topk_ids)
    assert not torch.equal(first.topk_ids, other.topk_ids)
    torch.manual_seed(3)
    drawn = limit_capacity(routing, 1, 50, order="random").topk_ids
    torch.manual_seed(3)
    assert torch.equal(limit_capacity(routing, 1, 50, order="random").topk_ids, drawn)


def test_random_dropping_has_no_favourites() -> None:
    """Each of ten tokens has one of five places in about half of 400 draws; in order it would be none or all."""
    routing = Routing(torch.ones(10, 1), torch.zeros(10, 1, dtype=torch.int32))
    kept = sum((limit_capacity(routing, 1, 5, order="random", seed=seed).topk_ids >= 0).long() for seed in seeds(400))
    assert bool(((kept > 140) & (kept < 260)).all())  # six standard deviations


def test_gradients_of_what_is_left() -> None:
    def weights(logits: Tensor, renormalize: bool) -> Tensor:
        return limit_capacity(moe_ext.route(logits, 2), 4, 2, renormalize=renormalize).topk_weights

    for renormalize in (False, True):
        logits = (LOGITS + 0.01 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: weights(logits, renormalize), logits)  # noqa: B023
    (grad,) = torch.autograd.grad(weights(logits, False).sum(), logits)
    dropped = limit_capacity(moe_ext.route(logits, 2), 4, 2).topk_ids.amax(1) < 0
    assert dropped.any()
    assert grad[dropped].abs().sum() == 0


def test_nothing_left_to_renormalize_is_zero_and_has_no_gradient() -> None:
    weights = torch.full((2, 1), 0.5, requires_grad=True)
    routing = Routing(weights, torch.zeros(2, 1, dtype=torch.int32))
    left = limit_capacity(routing, 1, 0, renormalize=True).topk_weights
    assert left.tolist() == [[0.0], [0.0]]
    (grad,) = torch.autograd.grad(left.sum(), weights)
    assert grad.tolist() == [[0.0], [0.0]]


# Random second expert.


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0.537883, 0.364851]), (0.2, [1.0, 0.912129])])
def test_second_expert_is_kept_in_proportion(threshold: float, expected: list[float]) -> None:
    """GShard keeps it with 2 g_2, ST-MoE with g_2 / 0.2."""
    routing = Routing(*(t[[0, 2]].repeat(20000, 1) for t in top2(renormalize=False)))
    thinned = random_second_expert(routing, threshold=threshold, seed=seeds(1)[0])
    assert torch.equal(thinned.topk_ids[:, 0], routing.topk_ids[:, 0])
    kept = (thinned.topk_ids[:, 1] >= 0).view(-1, 2).double().mean(0)
    torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.016)
    assert bool((thinned.topk_weights[:, 1][thinned.topk_ids[:, 1] < 0] == 0).all())


def test_second_expert_against_its_random_numbers() -> None:
    seed = seeds(4)[3]
    ids = random_second_expert(top2(), seed=seed).topk_ids
    u = random(seed, (6, 2), "uniform")[:, 1]
    assert torch.equal(ids[:, 1] >= 0, 2 * top2().topk_weights[:, 1] > u)


def test_a_rejected_second_choice_takes_no_place() -> None:
    """Token 0's second choice at expert 1 is rejected, and token 1's second choice gets its place."""
    routing = Routing(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0, 1], [0, 1]], dtype=torch.int32))
    limited = limit_capacity(random_second_expert(routing, seed=seeds(1)[0]), 2, 1)
    assert limited.topk_ids.tolist() == [[0, -1], [-1, 1]]


# Rerouting.


def test_rerouting_asks_the_next_best_expert() -> None:
    """Top-1 of three tokens that all want expert 0, which has one place: then 1, then 2."""
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1]])
    routing = moe_ext.route(scores, 1, score="none")
    once = reroute_overflow(routing, scores, 3, 1)
    assert once.topk_ids.tolist() == [[0], [1], [-1]]
    twice = reroute_overflow(routing, scores, 3, 1, max_iterations=2)
    assert twice.topk_ids.tolist() == [[0], [1], [2]]
    assert is_close(twice.topk_weights, [[0.5], [0.3], [0.1]])


def test_slots_of_a_token_go_to_different_experts() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
    routed = reroute_overflow(moe_ext.route(scores, 2, score="none"), scores, 4, 1)
    assert routed.topk_ids.tolist() == [[0, 1], [2, 3]]


@given(
    num_tokens=st.integers(0, 10),
    num_experts=st.integers(1, 5),
    top_k=st.integers(1, 3),
    capacity=st.integers(0, 5),
    iterations=st.integers(0, 3),
    order=st.sampled_from(ORDERS),
    group_size=st.none() | st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_rerouting_keeps_its_promises(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    capacity: int,
    iterations: int,
    order: str,
    group_size: int | None,
    seed: int,
) -> None:
    top_k = min(top_k, num_experts)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.softmax(torch.randn(num_tokens, num_experts, generator=generator), 1)
    routing = moe_ext.route(scores, top_k, score="none")
    options = {"order": order, "group_size": group_size, "seed": torch.tensor([seed])}
    plain = limit_capacity(routing, num_experts, capacity, **options)
    routed = reroute_overflow(routing, scores, num_experts, capacity, max_iterations=iterations, **options)
    stays = plain.topk_ids >= 0
    assert torch.equal(routed.topk_ids[stays], plain.topk_ids[stays])
    assert int((routed.topk_ids < 0).sum()) <= int((plain.topk_ids < 0).sum())
    for begin in range(0, num_tokens, group_size or max(num_tokens, 1)):
        of_group = routed.topk_ids[begin : begin + (group_size or num_tokens)]
        assert max(counts_of(of_group, num_experts)) <= capacity
    for ids, weights, of_token in zip(routed.topk_ids.tolist(), routed.topk_weights, scores, strict=True):
        used = [expert for expert in ids if expert >= 0]
        assert len(set(used)) == len(used)
        assert weights.tolist() == [0.0 if expert < 0 else float(of_token[expert]) for expert in ids]
    if iterations >= num_experts and top_k == 1 and capacity * num_experts >= (group_size or num_tokens):
        assert bool((routed.topk_ids >= 0).all())


def test_rerouted_weights_have_gradients() -> None:
    logits = (LOGITS + 0.01 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()

    def weights(logits: Tensor) -> Tensor:
        scores = torch.softmax(logits, 1)
        return reroute_overflow(moe_ext.route(logits, 2), scores, 4, 2, max_iterations=2).topk_weights

    assert torch.autograd.gradcheck(weights, logits)


# Wrong arguments.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"routing": (1, 2)}, TypeError, "routing must be a Routing, got tuple"),
        ({"capacity": -1}, ValueError, "capacity must be at least 0, got -1"),
        ({"capacity": 1.5}, TypeError, "capacity must be an int, got float"),
        ({"capacity": torch.tensor(1.5)}, TypeError, "capacity must be int32 or int64"),
        ({"capacity": torch.tensor([1, 2])}, ValueError, r"capacity must be one number, got shape \(2,\)"),
        ({"order": "fifo"}, ValueError, 'order must be one of "token", "choice", "priority", "score", "random"'),
        ({"eps": -1.0}, ValueError, "eps must be at least 0.0"),
        ({"priority": torch.rand(3)}, ValueError, "priority must be"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
        (
            {"routing": Routing(torch.rand(6, 1), torch.zeros(6, 2, dtype=torch.int32))},
            ValueError,
            r"topk_weights must be \[num_tokens, top_k\] = \(6, 2\), got shape \(6, 1\)",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"routing": top2(), "num_experts": 4, "capacity": 2, **change}
    with pytest.raises(error, match=message):
        limit_capacity(**arguments)  # type: ignore[arg-type]


def test_bad_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"scores must be \[num_tokens, num_experts\] = \(6, 4\)"):
        reroute_overflow(top2(), torch.rand(6, 5), 4, 2)
    with pytest.raises(ValueError, match="threshold must be greater than 0"):
        random_second_expert(top2(), threshold=0.0)
