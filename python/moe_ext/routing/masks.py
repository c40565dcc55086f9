"""Capacity made visible: dense masks [T, E, C] and padded buffers [E, C, H].

The experts of this package need neither, they take ids. Masks are the formulation of GShard (arXiv:2006.16668) and of
the Switch Transformer (arXiv:2101.03961), for small sizes and for comparison; buffers are for experts that are batched
matrix products, and for exchange between ranks in blocks of one size.
"""

from typing import Any

import torch
from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops._library import raw
from moe_ext.routing._arguments import Routed, check_routing, group_of_tokens
from moe_ext.routing.dropping import ORDERS, Order, positions_in_order


def buffer_rows(
    routing: Routed, num_experts: int, capacity: int, *, order: Order = "choice", group_size: int | None = None
) -> Tensor:
    """Where each slot lies in a buffer of G C rows for each expert: [T, K] int32, e G C + g C + place, -1 for none.

    Args:
        routing: topk_weights [T, K] and topk_ids [T, K].
        num_experts, capacity: E, C. Slots that are too many are left out, in `order`.
        order, group_size: as in `limit_capacity`, but not "random", which would give another place on every call. What
            `limit_capacity` has left fits in any order.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    name = "routing.buffer_rows"
    topk_weights, topk_ids = check_routing(name, routing)
    _checks.is_int(name, "capacity", capacity, low=0)
    _checks.is_choice(name, "order", order, tuple(known for known in ORDERS if known != "random"))
    positions, counts = positions_in_order(topk_weights, topk_ids, num_experts, order, None, group_size, None)
    num_groups = counts.shape[0]
    if num_experts * num_groups * capacity >= 2**31:
        raise ValueError(
            f"moe_ext.{name}: capacity must leave fewer than 2^31 rows in {num_experts * num_groups} buffers, "
            f"got {capacity}"
        )
    row = topk_ids.long() * (num_groups * capacity) + positions
    if group_size is not None:
        row = row + group_of_tokens(topk_ids.shape[0], group_size, topk_ids.device).unsqueeze(1) * capacity
    return row.where((positions >= 0) & (positions < capacity), -1).to(torch.int32)


def dispatch_and_combine_masks(
    routing: Routed, num_experts: int, capacity: int, *, order: Order = "choice", group_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The masks of GShard (arXiv:2006.16668, algorithm 2): which token lies in which place, and what it counts there.

    `x_e = einsum("tec,th->ech", dispatch, x)` are the buffers, and `einsum("tec,ech->th", combine, y_e)` is the sum
    over the experts of a token. `dispatch` is made of the ids: a slot of weight 0 is dispatched like any other, which
    `combine != 0` would lose. Their size is T E C, mostly zeros.

    Args:
        routing, num_experts, capacity, order, group_size: as in `buffer_rows`.

    Returns:
        dispatch [T, E, G C] bool and combine [T, E, G C] in the dtype of the weights; G is 1 without groups.
        Differentiable in the weights.

    Raises:
        TypeError, ValueError: as `buffer_rows`.
    """
    rows = buffer_rows(routing, num_experts, capacity, order=order, group_size=group_size)
    num_tokens = rows.shape[0]
    size = num_experts * _places(num_tokens, capacity, group_size)
    # One place more, for slots without one.
    index = rows.long().where(rows >= 0, size)
    weights = routing.topk_weights
    dispatch = torch.zeros(num_tokens, size + 1, dtype=torch.bool, device=rows.device).scatter(1, index, True)
    combine = torch.zeros(num_tokens, size + 1, dtype=weights.dtype, device=rows.device).scatter_add(1, index, weights)
    shape = (num_tokens, num_experts, _places(num_tokens, capacity, group_size))
    return dispatch[:, :size].reshape(shape), combine[:, :size].reshape(shape)


def to_buffers(
    x: Tensor,
    routing: Routed,
    num_experts: int,
    capacity: int,
    *,
    order: Order = "choice",
    group_size: int | None = None,
) -> Tensor:
    """The tokens of each expert in C rows, zeros where there are fewer.

    Args:
        x: [T, H], float32, bfloat16, float16 or float64.
        routing, num_experts, capacity, order, group_size: as in `buffer_rows`.

    Returns:
        [E, G C, H] in the dtype of x, G being 1 without groups; rows g C up to (g + 1) C of an expert belong to group
        g. Differentiable in x: the gradient of a token is the sum over its rows in the order of its choices, in float32
        and rounded once. Rows without a token have no gradient.

    Raises:
        TypeError, ValueError: as `buffer_rows`; x that is not [T, H].
    """
    name = "routing.to_buffers"
    _checks.is_tensor(name, "x", x, _checks.DATA_DTYPES)
    _checks.has_rank(name, "x", x, "num_tokens, hidden_size")
    slot_to_row = buffer_rows(routing, num_experts, capacity, order=order, group_size=group_size)
    num_tokens, top_k = slot_to_row.shape
    _checks.has_shape(name, "x", x, "num_tokens, hidden_size", (num_tokens, x.shape[1]))
    places = _places(num_tokens, capacity, group_size)
    size = num_experts * places
    token = torch.arange(num_tokens, dtype=torch.int32, device=x.device).unsqueeze(1).expand(-1, top_k)
    row_to_token = torch.full((size + 1,), -1, dtype=torch.int32, device=x.device)
    row_to_token = row_to_token.scatter(0, slot_to_row.long().where(slot_to_row >= 0, size).flatten(), token.flatten())
    rows = _SumRows.apply(x, row_to_token[:size].unsqueeze(1), slot_to_row)
    return rows.view(num_experts, places, x.shape[1])


def from_buffers(
    buffers: Tensor,
    routing: Routed,
    *,
    order: Order = "choice",
    group_size: int | None = None,
) -> Tensor:
    """What experts made of `to_buffers`, back to tokens: the weighted sum over the slots of each token.

    Rows without a token are not read, whatever a bias has made of their zeros, and get gradients of zero. The sum runs
    over the choices in order, in float32 (float64 for float64), and is rounded once.

    Args:
        buffers: [E, G C, H], float32, bfloat16, float16 or float64.
        routing, order, group_size: what `to_buffers` was given.

    Returns:
        [T, H] in the dtype of the buffers. Differentiable in the buffers and in the weights.

    Raises:
        TypeError, ValueError: as `to_buffers`; a number of rows that is no multiple of the groups.
    """
    name = "routing.from_buffers"
    _checks.is_tensor(name, "buffers", buffers, _checks.DATA_DTYPES)
    _checks.has_rank(name, "buffers", buffers, "num_experts, capacity, hidden_size")
    num_experts, places, hidden_size = buffers.shape
    topk_weights, topk_ids = check_routing(name, routing)
    num_groups = max(_places(topk_ids.shape[0], 1, group_size), 1)
    if places % num_groups:
        raise ValueError(
            f"moe_ext.{name}: buffers must have a multiple of {num_groups} (groups) rows for each expert, "
            f"got shape {tuple(buffers.shape)}"
        )
    slot_to_row = buffer_rows(routing, num_experts, places // num_groups, order=order, group_size=group_size)
    weights = _checks.routing_weights(name, topk_weights, buffers)
    return _combine(buffers.reshape(num_experts * places, hidden_size), weights, slot_to_row)


def _places(num_tokens: int, capacity: int, group_size: int | None) -> int:
    """Rows of an expert."""
    return capacity if group_size is None else (num_tokens + group_size - 1) // group_size * capacity


class _SumRows(torch.autograd.Function):
    """out[i] = sum over j of rows[index[i, j]], -1 adding nothing; `inverse` says who names a row, likewise."""

    @staticmethod
    def forward(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return _sum_rows(rows, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _SumRows.apply(grad, inverse, index), None, None


# The sums of moe_ext's own combine and gather_rows, which take any number of rows.
_combine = raw("combine")
_sum_rows = raw("gather_rows_backward")
