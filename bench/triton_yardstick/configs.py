"""Tiles of the yardstick's GEMMs.

Of 128x256x64, 128x128x64, 128x128x32, 64x256x64, 64x128x64, 32x128x64, 16x256x64 and 16x128x64 with 4 and 8 warps,
these gave the fewest global sectors and the fewest instructions per useful product on the shapes of `bench.virtual` and
the chips A100 and H100. The number of stages does not change a counter; they are those that Triton's own examples use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class GemmConfig:
    """Rows x columns x depth of a tile, warps of a block, stages of the pipeline."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k}, {self.num_warps} warps, {self.num_stages} stages"


_WIDE: Final = GemmConfig(128, 256, 64, 8, 3)
_SQUARE: Final = GemmConfig(128, 128, 64, 4, 3)
_SMALL_WIDE: Final = GemmConfig(16, 256, 64, 4, 3)
_SMALL: Final = GemmConfig(16, 128, 64, 4, 4)
CONFIGS: Final = (_WIDE, _SQUARE, _SMALL_WIDE, _SMALL)


def rows_config(num_columns: int, block_m: int) -> GemmConfig:
    """For a product over rows whose tiles have `block_m` of them."""
    wide, narrow = (_WIDE, _SQUARE) if block_m == _WIDE.block_m else (_SMALL_WIDE, _SMALL)
    return wide if num_columns % wide.block_n == 0 else narrow


def rows_of_a_tile(rows_per_expert: float) -> int:
    """block_m, which the products of a layer share because they share the padded order."""
    return _SMALL.block_m if rows_per_expert <= 2 * _SMALL.block_m else _WIDE.block_m


def wgrad_config(num_columns: int) -> GemmConfig:
    """For a product over the tokens of each expert."""
    return _WIDE if num_columns % _WIDE.block_n == 0 else _SQUARE
