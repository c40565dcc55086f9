"""Which problems the ops are tested on: a list of named cases, each a shape and a routing.

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_it(case): ...

A routing is a function ``(shape, generator) -> topk_ids [T, K] int32``. A case is only a recipe: its ids are made by
``case.topk_ids()``, always the same for the same seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    num_tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int


Routing = Callable[[Shape, torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    routing: Routing

    def topk_ids(self, seed: int = 0) -> Tensor:
        """``[T, K]`` int32."""
        ids = self.routing(self.shape, torch.Generator().manual_seed(seed)).to(torch.int32)
        assert ids.shape == (self.shape.num_tokens, self.shape.top_k), f"{self.name}: {tuple(ids.shape)}"
        return ids

    def __str__(self) -> str:
        return self.name


def balanced(shape: Shape, generator: torch.Generator) -> Tensor:
    """K distinct experts per token, all equally likely. What a router makes."""
    return _distinct(torch.ones(shape.num_experts), shape, generator)


def skewed(shape: Shape, generator: torch.Generator) -> Tensor:
    """K distinct experts per token, expert e with a likelihood of 1 / (e + 1)^2: few popular experts, a long tail."""
    return _distinct(1.0 / torch.arange(1, shape.num_experts + 1) ** 2, shape, generator)


def half_empty(shape: Shape, generator: torch.Generator) -> Tensor:
    """Only odd experts are used, so empty ones stand first, between and (for odd E) last. Needs E >= 2K."""
    odd = torch.arange(shape.num_experts) % 2
    return _distinct(odd.float(), shape, generator)


def one_expert(shape: Shape, generator: torch.Generator) -> Tensor:
    """Every slot goes to the last expert; for K > 1 these are duplicates."""
    return torch.full((shape.num_tokens, shape.top_k), shape.num_experts - 1)


def every_expert(shape: Shape, generator: torch.Generator) -> Tensor:
    """Each token's slots are a permutation of all experts. Needs K = E."""
    assert shape.top_k == shape.num_experts
    return balanced(shape, generator)


def duplicates(shape: Shape, generator: torch.Generator) -> Tensor:
    """Each slot draws on its own, so that a token often names an expert twice."""
    return torch.randint(shape.num_experts, (shape.num_tokens, shape.top_k), generator=generator)


def sentinels(shape: Shape, generator: torch.Generator) -> Tensor:
    """Of a balanced routing, a third of the slots names no expert: -1, E, a large negative or a large positive id."""
    ids = balanced(shape, generator)
    outside = torch.tensor([-1, shape.num_experts, -(2**31), 2**31 - 1])
    chosen = outside[torch.randint(4, ids.shape, generator=generator)]
    return torch.where(torch.rand(ids.shape, generator=generator) < 1 / 3, chosen, ids)


def only_sentinels(shape: Shape, generator: torch.Generator) -> Tensor:
    """No slot names an expert, as on a rank that none of its tokens stays on."""
    return torch.full((shape.num_tokens, shape.top_k), -1)


def exact_counts(counts: Sequence[int]) -> Routing:
    """Expert e gets exactly ``counts[e]`` slots, in random places. Needs sum(counts) = T * K and len(counts) = E."""

    def routing(shape: Shape, generator: torch.Generator) -> Tensor:
        assert len(counts) == shape.num_experts
        ids = torch.arange(shape.num_experts).repeat_interleave(torch.tensor(counts))
        return ids[torch.randperm(ids.numel(), generator=generator)].view(shape.num_tokens, shape.top_k)

    return routing


def _distinct(likelihood: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    if shape.num_tokens == 0:
        return torch.empty(0, shape.top_k)
    return torch.multinomial(likelihood.expand(shape.num_tokens, -1), shape.top_k, generator=generator)


def around_tile(tile: int, hidden_size: int = 64, intermediate_size: int = 32) -> Case:
    """Three experts with one row less than a tile, a tile, and one row more."""
    shape = Shape(tile, hidden_size, intermediate_size, num_experts=3, top_k=3)
    return Case(f"around_tile_{tile}", shape, exact_counts((tile - 1, tile, tile + 1)))


# Every problem an op has to survive, small enough for the float64 reference.
CASES = (
    Case("balanced", Shape(64, 64, 48, 8, 2), balanced),
    Case("no_tokens", Shape(0, 32, 16, 4, 2), balanced),
    Case("one_token", Shape(1, 32, 16, 4, 2), balanced),
    Case("one_token_one_expert", Shape(1, 16, 16, 1, 1), one_expert),
    Case("top_1", Shape(50, 32, 48, 6, 1), balanced),
    Case("one_expert_layer", Shape(33, 32, 16, 1, 1), one_expert),
    Case("all_to_one_expert", Shape(40, 48, 32, 5, 2), one_expert),
    Case("half_empty", Shape(30, 32, 32, 9, 3), half_empty),
    Case("more_experts_than_rows", Shape(5, 32, 16, 64, 2), balanced),
    Case("skewed", Shape(96, 32, 32, 16, 4), skewed),
    Case("every_expert", Shape(21, 32, 24, 6, 6), every_expert),
    Case("duplicates", Shape(37, 32, 16, 3, 3), duplicates),
    Case("sentinels", Shape(45, 48, 32, 7, 3), sentinels),
    Case("only_sentinels", Shape(9, 32, 16, 4, 2), only_sentinels),
    Case("odd_sizes", Shape(43, 37, 29, 5, 3), balanced),
    Case("odd_sizes_sentinels", Shape(19, 67, 33, 11, 2), sentinels),
    Case("tiny_sizes", Shape(7, 3, 1, 2, 2), every_expert),
    around_tile(16),
    around_tile(32, hidden_size=40, intermediate_size=24),
    around_tile(64),
    around_tile(128),
)

# For gradcheck, which calls the function twice per input value.
SMALL_CASES = (
    Case("balanced", Shape(4, 5, 3, 4, 2), balanced),
    Case("no_tokens", Shape(0, 3, 2, 3, 2), balanced),
    Case("one_token", Shape(1, 4, 3, 3, 2), balanced),
    Case("half_empty", Shape(3, 4, 2, 5, 2), half_empty),
    Case("every_expert", Shape(3, 3, 2, 3, 3), every_expert),
    Case("duplicates", Shape(4, 3, 3, 2, 3), duplicates),
    Case("sentinels", Shape(5, 4, 3, 4, 2), sentinels),
    Case("only_sentinels", Shape(2, 3, 2, 3, 2), only_sentinels),
)


def case(name: str) -> Case:
    """The case of ``CASES`` with this name."""
    return next(candidate for candidate in CASES if candidate.name == name)
