"""Logits by place instead of content: one learned row of logits for each point of a grid."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._side_inputs import checked_ids


class GridLogits(Float32Module):
    """`router_logits = G[place]`, G learned (Spatial mixture-of-experts; Dryden and Hoefler 2022, arXiv:2211.13491).

    The places are the input: `Router(GridLogits((height, width), E), TopK(E, K))(x, gate_input=places)`. In a weather
    model, say, the same place always meets the same experts.

    The paper trains it with two additions, for which all that is needed is there:

    * Routing classification loss: a binary cross entropy on the logits. A target says for every expert that was chosen
      whether its error at that place is small (1) or not (0):
      `F.binary_cross_entropy_with_logits(router_logits.gather(1, topk_ids.long()), (error <= quantile).float())`, with
      the error of the layer's output, read off its gradient.
    * Expert error damping: where an expert was wrongly chosen in that sense, the gradient to it is scaled down, so that
      it is not trained on what it should not see: multiply the gradient of the expert's rows by a factor in a hook
      (`rows.register_hook(lambda grad: grad * factor[:, None])`) between `moe_ext.grouped_gemm` and
      `moe_ext.combine`.

    Args:
        grid: sizes of the grid, such as (height, width).
        num_experts: E.
        init_std: standard deviation of the normal initialisation.
        device: of the parameter, which is float32.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    def __init__(
        self,
        grid: Sequence[int],
        num_experts: int,
        *,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not grid:
            raise ValueError("moe_ext.GridLogits: grid must have at least one size, got none")
        for size in grid:
            _checks.is_int("GridLogits", "grid", size, low=1)
        _checks.is_int("GridLogits", "num_experts", num_experts, low=1)
        _checks.is_number("GridLogits", "init_std", init_std, low=0.0)
        self.grid = tuple(grid)
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(*grid, num_experts, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialise."""
        nn.init.normal_(self.weight, std=self.init_std)

    def forward(self, places: Tensor) -> Tensor:
        """Look up.

        Args:
            places: [T] int32 or int64, numbers of points in row-major order: row * width + column on a plane.

        Returns:
            [T, E] float32.

        Raises:
            ValueError: a place outside of the grid (on the CPU, outside of torch.compile).
        """
        places = checked_ids("GridLogits", "places", places, num_ids=math.prod(self.grid))
        # Not index_select, whose gradient is summed in another order in every run on CUDA.
        return F.embedding(places, self.weight.flatten(0, -2))

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_experts={self.weight.shape[-1]}"
