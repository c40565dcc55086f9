"""Masks and buffers: the dense and the padded way of what the experts do with ids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext.ops.types import Routing
from moe_ext.routing import dispatch_and_combine_masks, dynamic_capacity, from_buffers, limit_capacity, to_buffers
from tests.routing.capacity_cases import first_come, routings, visiting_order

ORDERS = ["token", "choice", "priority", "score"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Three tokens, top-2 of four experts.
ABC = Routing(
    torch.tensor([[0.57, 0.43], [0.75, 0.25], [0.625, 0.375]]),
    torch.tensor([[1, 3], [1, 2], [2, 0]], dtype=torch.int32),
)
X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_worked_example() -> None:
    """Tokens A and B share expert 1, B and C expert 2; in order of tokens each has a place of its own."""
    dispatch, combine = dispatch_and_combine_masks(ABC, 4, 3, order="token")
    expected = torch.zeros(3, 4, 3)
    expected[0, 1, 0], expected[0, 3, 0] = 0.57, 0.43
    expected[1, 1, 1], expected[1, 2, 0] = 0.75, 0.25
    expected[2, 0, 0], expected[2, 2, 1] = 0.375, 0.625
    assert torch.equal(combine, expected)
    assert torch.equal(dispatch, expected != 0)
    a, b, c, none = [1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0]
    places = [[c, none, none], [a, b, none], [b, c, none], [a, none, none]]
    assert torch.einsum("tec,th->ech", dispatch.float(), X).tolist() == places
    assert to_buffers(X, ABC, 4, 3, order="token").tolist() == places
    scaled = torch.tensor(places) * torch.arange(1, 5).view(4, 1, 1)
    y = [[2.86, 5.72], [6.75, 9.0], [11.25, 13.5]]
    torch.testing.assert_close(torch.einsum("tec,ech->th", combine, scaled), torch.tensor(y))
    torch.testing.assert_close(from_buffers(scaled, ABC, order="token"), torch.tensor(y))


def test_a_weight_of_zero_is_dispatched() -> None:
    routing = Routing(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int32))
    dispatch, combine = dispatch_and_combine_masks(routing, 1, 1)
    assert dispatch.tolist() == [[[True]]]
    assert combine.tolist() == [[[0.0]]]


@given(
    drawn=routings(),
    capacity=st.integers(0, 6),
    order=st.sampled_from(ORDERS),
    group_size=st.none() | st.integers(1, 10),
    masked=st.booleans(),
)
def test_masks_and_buffers_are_the_loop(
    drawn: tuple[Routing, int], capacity: int, order: str, group_size: int | None, masked: bool
) -> None:
    """Expert e multiplies by e + 2."""
    routing, num_experts = drawn
    num_tokens = routing.topk_ids.shape[0]
    x = torch.arange(num_tokens * 3, dtype=torch.float32).view(-1, 3) + 1
    layout = {"order": order, "group_size": group_size}
    scale = torch.arange(2, num_experts + 2).view(-1, 1, 1)
    if masked:
        dispatch, combine = dispatch_and_combine_masks(routing, num_experts, capacity, **layout)
        assert bool((dispatch.long().sum(0) <= 1).all())  # a place holds one token
        assert bool((combine.where(dispatch, 1.0) == combine.where(dispatch, 1.0)).all())
        buffers = torch.einsum("tec,th->ech", dispatch.float(), x)
        assert torch.equal(buffers, to_buffers(x, routing, num_experts, capacity, **layout))
        y = torch.einsum("tec,ech->th", combine, buffers * scale)
    else:
        buffers = to_buffers(x, routing, num_experts, capacity, **layout)
        y = from_buffers(buffers * scale, routing, **layout)
    kept = first_come(routing.topk_ids, num_experts, capacity, visiting_order(order, routing.topk_weights), group_size)
    assert int((buffers.abs().sum(2) > 0).sum()) == int(kept.sum())
    weights = (routing.topk_weights * (routing.topk_ids + 2)).where(kept, 0.0)
    torch.testing.assert_close(y, weights.sum(1, keepdim=True) * x)


@given(drawn=routings(), seed=st.integers(0, 2**31))
def test_room_for_the_largest_load_is_dropless(drawn: tuple[Routing, int], seed: int) -> None:
    """Masks, buffers, fused_experts and a loop over tokens: the same."""
    routing, num_experts = drawn
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w_gate_up, w_down = draw(len(routing.topk_ids), 4), draw(num_experts, 6, 4), draw(num_experts, 4, 3)
    weights, ids = routing.topk_weights.double(), routing.topk_ids
    capacity = int(dynamic_capacity(ids, num_experts))

    def expert(e: int, rows: Tensor) -> Tensor:
        gate, up = (rows @ w_gate_up[e].T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up) @ w_down[e].T

    expected = torch.zeros_like(x)
    for t, k in (ids >= 0).nonzero().tolist():
        expected[t] += weights[t, k] * expert(int(ids[t, k]), x[t])
    torch.testing.assert_close(moe_ext.fused_experts(x, w_gate_up, w_down, weights, ids), expected)
    routing = Routing(weights, ids)
    dispatch, combine = dispatch_and_combine_masks(routing, num_experts, capacity)
    buffers = torch.einsum("tec,th->ech", dispatch.double(), x)
    outputs = torch.stack([expert(e, rows) for e, rows in enumerate(buffers)])
    torch.testing.assert_close(torch.einsum("tec,ech->th", combine, outputs), expected)
    buffers = to_buffers(x, routing, num_experts, capacity)
    outputs = torch.stack([expert(e, rows) for e, rows in enumerate(buffers)])
    torch.testing.assert_close(from_buffers(outputs, routing), expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("capacity", [1, 3, 12])
def test_three_ways_to_the_same_experts(order: str, capacity: int) -> None:
    """fused_experts on the slots that are left, masks, and buffers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w_gate_up, w_down = draw(12, 8), draw(4, 10, 8), draw(4, 8, 5)
    routing = moe_ext.route(draw(12, 4), 2)
    fused = moe_ext.fused_experts(x, w_gate_up, w_down, *limit_capacity(routing, 4, capacity, order=order))

    def experts(buffers: Tensor) -> Tensor:
        gate, up = torch.einsum("ech,eih->eci", buffers, w_gate_up).chunk(2, 2)
        return torch.einsum("eci,ehi->ech", torch.nn.functional.silu(gate) * up, w_down)

    dispatch, combine = dispatch_and_combine_masks(routing, 4, capacity, order=order)
    by_masks = torch.einsum("tec,ech->th", combine, experts(torch.einsum("tec,th->ech", dispatch.double(), x)))
    by_buffers = from_buffers(experts(to_buffers(x, routing, 4, capacity, order=order)), routing, order=order)
    torch.testing.assert_close(by_masks, fused)
    torch.testing.assert_close(by_buffers, fused)


def test_a_bias_in_padding_reaches_nothing() -> None:
    buffers = to_buffers(X, ABC, 4, 3)
    poisoned = torch.where(buffers.abs().sum(2, keepdim=True) > 0, buffers, torch.nan).requires_grad_()
    y = from_buffers(poisoned, ABC)
    torch.testing.assert_close(y, X * ABC.topk_weights.sum(1, keepdim=True))
    (grad,) = torch.autograd.grad(y.sum(), poisoned)
    assert torch.equal(grad.abs().sum(2) > 0, ~poisoned.isnan().any(2))


def test_gradients() -> None:
    x = X.double().requires_grad_()
    weights = ABC.topk_weights.double().requires_grad_()
    buffers = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def routing(weights: Tensor) -> Routing:
        return Routing(weights, ABC.topk_ids)

    check = {"raise_exception": True}
    assert torch.autograd.gradcheck(lambda x: to_buffers(x, ABC, 4, 2), x, **check)
    assert torch.autograd.gradgradcheck(lambda x: to_buffers(x, ABC, 4, 2) ** 2, x, **check)
    assert torch.autograd.gradcheck(lambda b, w: from_buffers(b, routing(w)), (buffers, weights), **check)
    assert torch.autograd.gradcheck(lambda w: dispatch_and_combine_masks(routing(w), 4, 2)[1], weights, **check)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """The gradient of a token is the sum over its rows in float32, rounded once."""
    x = torch.randn(40, 16).to(dtype).requires_grad_()
    routing = moe_ext.route(torch.randn(40, 6), 4)
    buffers = to_buffers(x, routing, 6, 40)
    assert buffers.dtype == dtype
    grad_out = torch.randn(6, 40, 16).to(dtype)
    (grad,) = torch.autograd.grad(buffers, x, grad_out)
    dispatch, _ = dispatch_and_combine_masks(routing, 6, 40)
    expected = torch.einsum("tec,ech->th", dispatch.double(), grad_out.double())
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    torch.testing.assert_close(grad, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=4 * rounding)
    assert from_buffers(buffers, routing).dtype == dtype


def test_groups_have_places_of_their_own() -> None:
    """Two groups of two tokens at one expert with one place each: rows 0 and 1 of its buffer."""
    routing = Routing(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int32))
    buffers = to_buffers(torch.arange(1.0, 5.0).view(4, 1), routing, 1, 1, group_size=2)
    assert buffers.tolist() == [[[1.0], [3.0]]]
    assert from_buffers(buffers, routing, group_size=2).flatten().tolist() == [1.0, 0.0, 3.0, 0.0]


def test_compiles() -> None:
    def through(x: Tensor, weights: Tensor) -> Tensor:
        routing = Routing(weights, ABC.topk_ids)
        dispatch, combine = dispatch_and_combine_masks(routing, 4, 2)
        y = from_buffers(to_buffers(x, routing, 4, 2) * 2, routing)
        return y + torch.einsum("tec,tec,th->th", combine, dispatch.float(), x)

    x, weights = X.clone().requires_grad_(), ABC.topk_weights.clone().requires_grad_()
    compiled = torch.compile(through, fullgraph=True, backend="aot_eager")
    expected, actual = through(x, weights), compiled(x, weights)
    torch.testing.assert_close(actual, expected)
    expected_grads = torch.autograd.grad(expected.sum(), (x, weights))
    torch.testing.assert_close(torch.autograd.grad(actual.sum(), (x, weights)), expected_grads)


def test_bad_arguments_are_named() -> None:
    for bad, error, message in (
        (lambda: to_buffers(X, ABC, 4, -1), ValueError, "capacity must be at least 0, got -1"),
        (lambda: to_buffers(X, ABC, 4, torch.tensor(2)), TypeError, "capacity must be an int, got Tensor"),
        (lambda: to_buffers(X, ABC, 4, 2**30), ValueError, r"capacity must leave fewer than 2\^31 rows in 4 buffers"),
        (lambda: to_buffers(X[:2], ABC, 4, 2), ValueError, "x must be"),
        (lambda: to_buffers(X, ABC, 4, 2, order="random"), ValueError, "order must be one of"),
        (lambda: from_buffers(X, ABC), ValueError, r"buffers must be \[num_experts, capacity, hidden_size\]"),
        (lambda: from_buffers(torch.zeros(4, 3, 2), ABC, group_size=2), ValueError, r"a multiple of 2 \(groups\) rows"),
        (lambda: dispatch_and_combine_masks((X, X), 4, 2), TypeError, "routing must be a Routing, got tuple"),
    ):
        with pytest.raises(error, match=message):
            bad()
