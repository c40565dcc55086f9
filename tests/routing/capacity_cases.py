"""What the tests of capacity share: a worked example of six tokens, and a loop that drops slots one by one."""

import torch
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext.ops.types import Routing

LOGITS = torch.tensor(
    [[2, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]], dtype=torch.float64
)
TOP2_IDS = [[0, 1], [1, 3], [2, 0], [0, 2], [1, 0], [1, 0]]
TOP2_WEIGHTS = [
    [0.731059, 0.268941], [0.731059, 0.268941], [0.817574, 0.182426],
    [0.880797, 0.119203], [0.731059, 0.268941], [0.731059, 0.268941],
]  # fmt: skip


def top2(renormalize: bool = True) -> Routing:
    return moe_ext.route(LOGITS, 2, renormalize=renormalize)


def is_close(actual: Tensor, expected: object) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)


def counts_of(ids: Tensor, num_experts: int) -> list[int]:
    return [int((ids == e).sum()) for e in range(num_experts)]


def first_come(
    ids: Tensor, num_experts: int, capacity: int, slots: list[tuple[int, int]], group_size: int | None = None
) -> Tensor:
    """Visits `slots` in order; an expert takes `capacity` of them in each group. [T, K] bool."""
    kept = torch.zeros(ids.shape, dtype=torch.bool)
    taken: dict[tuple[int, int], int] = {}
    for t, k in slots:
        expert = int(ids[t, k])
        place = (0 if group_size is None else t // group_size, expert)
        if 0 <= expert < num_experts and taken.get(place, 0) < capacity:
            taken[place] = taken.get(place, 0) + 1
            kept[t, k] = True
    return kept


def visiting_order(order: str, weights: Tensor) -> list[tuple[int, int]]:
    num_tokens, top_k = weights.shape
    tokens = list(range(num_tokens))
    if order == "token":
        return [(t, k) for t in tokens for k in range(top_k)]
    if order == "priority":
        tokens.sort(key=lambda t: -float(weights[t].max()))
    slots = [(t, k) for k in range(top_k) for t in tokens]
    if order == "score":
        slots.sort(key=lambda slot: -float(weights[slot]))
    return slots


@st.composite
def routings(draw: st.DrawFn) -> tuple[Routing, int]:
    """A routing with ties, unused slots and crowded experts, and its number of experts."""
    num_experts = draw(st.integers(1, 6))
    num_tokens, top_k = draw(st.integers(0, 9)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    crowd = draw(st.integers(1, num_experts))
    ids = torch.randint(-1, crowd, (num_tokens, top_k), generator=generator, dtype=torch.int32)
    weights = torch.randint(1, 6, (num_tokens, top_k), generator=generator).float() / 8
    return Routing(weights.where(ids >= 0, 0.0), ids), num_experts
