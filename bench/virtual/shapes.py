"""Shapes for the virtual GPU: those of real layers, made small enough to count.

Tiles see what they would see in the real layer when the rows of an expert stay as many, and bytes keep their
proportions when E and T shrink together: R, T and the number of weights then shrink alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.shapes import Shape


@dataclass(frozen=True)
class VirtualShape:
    """A shape, the layer it stands for, and what was done to that. Routing is cheap, so it is counted among as many
    experts as the real layer has."""

    shape: Shape
    router_experts: int
    stands_for: str
    scaled: str
    phases: tuple[str, ...] = ("inference", "forward", "backward")

    @property
    def name(self) -> str:
        """Of the shape."""
        return self.shape.name

    def __str__(self) -> str:
        s = self.shape
        sizes = f"T={s.num_tokens} H={s.hidden_size} I={s.intermediate_size} E={s.num_experts} K={s.top_k}"
        return f"{s.name}: {sizes}, for {self.stands_for}: {self.scaled}"


_ALL: Final = (
    VirtualShape(
        Shape("qwen3", 512, 1024, 384, 16, 8),
        128,
        "Qwen3-30B-A3B (H=2048 I=768 E=128 K=8)",
        "E and T an eighth, H and I half; 256 rows an expert, as of 4096 tokens",
    ),
    VirtualShape(
        Shape("mixtral", 1024, 512, 1792, 8, 2),
        8,
        "Mixtral-8x7B (H=4096 I=14336 E=8 K=2)",
        "H and I an eighth; 256 rows an expert, as of 1024 tokens",
    ),
    VirtualShape(
        Shape("fine", 512, 1536, 256, 16, 8),
        128,
        "a fine-grained 7B layer (H=1536 I=256 E=128 K=8)",
        "E and T an eighth; 256 rows an expert, as of 4096 tokens",
    ),
    VirtualShape(
        Shape("decode", 16, 1024, 384, 32, 8, training=False),
        128,
        "Qwen3-30B-A3B, 64 tokens at a time",
        "E and T a quarter, H and I half; 4 rows an expert",
        ("inference",),
    ),
)
SHAPES: Final[dict[str, VirtualShape]] = {shape.name: shape for shape in _ALL}
# Not in SHAPES: it exists to see the machinery run.
TINY: Final = VirtualShape(Shape("tiny", 96, 64, 64, 4, 2), 8, "nothing", "made small")


def find_shape(name: str) -> VirtualShape:
    """The shape of that name. Raises ValueError naming the known ones."""
    if name == TINY.name:
        return TINY
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    return SHAPES[name]
