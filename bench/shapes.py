"""Named layer shapes with the work they declare: FLOPs and the bytes that no implementation can avoid moving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODES: Final = ("fwd", "fwdbwd")


@dataclass(frozen=True)
class Shape:
    """One MoE layer and the batch it sees; `training` says whether a backward pass makes sense for it."""

    name: str
    num_tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    training: bool = True

    @property
    def num_rows(self) -> int:
        """R = T*K, the rows the experts compute."""
        return self.num_tokens * self.top_k

    @property
    def expert_numel(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    def flops(self, mode: str) -> int:
        """Multiply-adds count twice; the backward pass costs two more GEMMs for each one of the forward pass."""
        router = 2 * self.num_tokens * self.num_experts * self.hidden_size
        experts = 2 * self.num_rows * self.expert_numel
        return (router + experts) * (3 if mode == "fwdbwd" else 1)

    def compulsory_bytes(
        self, mode: str, num_hit_experts: int, itemsize: int, weight_itemsize: int | None = None
    ) -> int:
        """Traffic of an ideal layer whose intermediates never leave the caches.

        Forward: the weights of the experts that got a token, the router and x are read, y is written. With the
        backward pass those weights, the router and x are read twice, grad_y is read, and grad_x and the gradients of
        all weights (zeros of idle experts too) are written once. `weight_itemsize`: of experts' weights that are read
        in another format than the rest.
        """
        hit = num_hit_experts * self.expert_numel
        every = self.num_experts * self.expert_numel
        router = self.num_experts * self.hidden_size
        tokens = self.num_tokens * self.hidden_size
        if mode == "fwd":
            return hit * (weight_itemsize or itemsize) + (router + 2 * tokens) * itemsize
        return (2 * hit + every + 3 * router + 5 * tokens) * itemsize


def _decode(num_tokens: int) -> Shape:
    return Shape(f"decode{num_tokens}", num_tokens, 2048, 768, 128, 8, training=False)


_ALL: Final = (
    Shape("fine", 2048, 1024, 512, 64, 8),
    Shape("mixtral", 1024, 1024, 3584, 8, 2),
    Shape("qwen3", 512, 2048, 768, 128, 8),
    Shape("dsv2lite", 1024, 2048, 1408, 64, 6),
    _decode(1),
    _decode(4),
    _decode(16),
)
SHAPES: Final[dict[str, Shape]] = {shape.name: shape for shape in _ALL}
# Not in SHAPES, so that no table mistakes it for a result: it exists to see the machinery run.
TINY: Final = Shape("tiny", 48, 64, 48, 8, 2)


def find_shape(name: str) -> Shape:
    """The shape of that name. Raises ValueError naming the known ones."""
    if name == TINY.name:
        return TINY
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    return SHAPES[name]
