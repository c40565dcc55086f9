"""A cache of expert weights in the layout that the CPU kernels read fastest."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from moe_ext import _C

from . import _checks
from ._autograd import differentiable
from ._library import fake

# What both dimensions of a matrix have to be multiples of to be tiled.
_TILED_MULTIPLE = 32
_TILED_STEP = _TILED_MULTIPLE**2


class PackedExperts:
    """Expert weights laid out for inference, made again when a weight changes.

    bfloat16 on a processor with AMX: a copy of all weights in the order in which its tiles are multiplied, on huge
    pages where the system grants them, if ``hidden_size`` and ``intermediate_size`` are multiples of 32. The results
    have the same bits. ``num_bytes`` is then the size of the weights.

    Otherwise the kernels read rows that are contiguous along the inner dimension: ``w_gate_up`` ``[num_experts,
    2 * intermediate_size, hidden_size]`` and ``w_down`` ``[num_experts, hidden_size, intermediate_size]`` as
    `nn.Linear` keeps them. Weights that already lie so are used as they are, and cost nothing here. Of any others
    (``transposed``, or strided otherwise) a copy is kept: ``num_bytes`` says how much that is, at most the size of the
    weights.

    Pass it to :func:`fused_experts` as ``packed``, with the very tensors it was made of. It serves calls that record no
    gradient; others, and traced ones, read the weights themselves. Before each use the weights' version counters and
    addresses are compared, and what has changed is copied again. Tensors made under `torch.inference_mode` count no
    versions: after writing to them call `refresh`.

    Args:
        w_gate_up, w_down: as for :func:`fused_experts`.
        transposed: as for :func:`fused_experts`.

    Raises:
        TypeError, ValueError: what is no pair of stacked expert weights.
    """

    def __init__(self, w_gate_up: Tensor, w_down: Tensor, *, transposed: bool = False) -> None:
        name = "PackedExperts"
        _checks.is_bool(name, "transposed", transposed)
        for label, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
            _checks.is_tensor(name, label, weight, _checks.DATA_DTYPES)
            _checks.has_rank(name, label, weight, "num_experts, rows, columns")
        if w_gate_up.shape[0] != w_down.shape[0]:
            raise ValueError(
                f"moe_ext.{name}: w_gate_up and w_down must have as many experts, "
                f"got {w_gate_up.shape[0]} and {w_down.shape[0]}"
            )
        self.transposed = transposed
        self._weights = (w_gate_up, w_down)
        self._copies: list[Tensor | None] = [None, None]
        self._states: list[tuple[object, ...] | None] = [None, None]

    @property
    def num_bytes(self) -> int:
        """Memory of the copies, in bytes; 0 until the first use, and where the weights lie well."""
        return sum(copy.nbytes for copy in self._copies if copy is not None)

    def is_of(self, w_gate_up: Tensor, w_down: Tensor, transposed: bool) -> bool:
        """Whether it was made of these tensors."""
        mine = self._weights[0] is w_gate_up and self._weights[1] is w_down
        return mine and self.transposed == transposed

    def refresh(self) -> None:
        """Copy again at the next use, whether or not anything has changed."""
        self._states = [None, None]

    def prepare(self, *, interleaved: bool = False) -> PackedExperts:
        """Make the copies now, not at the first use. interleaved: as for :func:`fused_experts`. Returns itself."""
        _checks.is_bool("PackedExperts.prepare", "interleaved", interleaved)
        if self.are_tiled:
            self.tiles(interleaved)
        else:
            self.weights()
        return self

    def weights(self) -> tuple[Tensor, Tensor]:
        """``w_gate_up`` and ``w_down``, neither transposed, contiguous along the inner dimension."""
        return self._rows(0), self._rows(1)

    @property
    def are_tiled(self) -> bool:
        """Whether the instruction set in use multiplies tiles, and the weights can be cut into them."""
        k_dim = 1 if self.transposed else 2
        fit = all(
            weight.device.type == "cpu"
            and weight.dtype == torch.bfloat16
            and weight.shape[k_dim] % _TILED_MULTIPLE == 0
            for weight in self._weights
        )
        return fit and _C.cpu_isa() == "amx"

    def tiles(self, interleaved: bool) -> tuple[Tensor, Tensor]:
        """``w_gate_up`` and ``w_down`` as tiles, if `are_tiled`. interleaved: as for :func:`fused_experts`."""
        w_gate_up, w_down = self._weights
        intermediate_size = w_down.shape[1 if self.transposed else 2]
        parts = w_gate_up.shape[2 if self.transposed else 1] // max(intermediate_size, 1)
        return self._tiles(0, parts, interleaved), self._tiles(1, 1, False)

    def _rows(self, which: int) -> Tensor:
        weight = self._weights[which].detach()
        rows = weight.transpose(1, 2) if self.transposed else weight
        if rows.stride(2) == 1:
            self._copies[which] = None
            return rows
        state = self._state(which, "rows")
        copy = self._copies[which]
        if copy is None or self._states[which] != state:
            self._copies[which] = None  # or both would stand in memory
            copy = rows.contiguous()
            self._copies[which], self._states[which] = copy, state
        return copy

    def _tiles(self, which: int, parts: int, interleaved: bool) -> Tensor:
        state = self._state(which, "tiles", interleaved)
        copy = self._copies[which]
        if copy is None or self._states[which] != state:
            self._copies[which] = None
            copy = _tile_weights(self._weights[which].detach(), parts, interleaved, self.transposed)
            self._copies[which], self._states[which] = copy, state
        return copy

    def _state(self, which: int, *layout: object) -> tuple[object, ...]:
        weight = self._weights[which]
        return (None if weight.is_inference() else weight._version, weight.data_ptr(), *layout)


@fake("tile_weights")
def _tile_weights_fake(weight: Tensor, parts: int, interleaved: bool, transposed: bool) -> Tensor:
    num_experts, n, k = weight.mT.shape if transposed else weight.shape
    return weight.new_empty((num_experts, n // parts // _TILED_MULTIPLE, parts, k // _TILED_MULTIPLE, _TILED_STEP))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _backward(ctx: Any, grad: Tensor | None) -> NoReturn:
    raise NotImplementedError("moe_ext::tile_weights has no derivative: tiles are for inference")


_tile_weights = differentiable("tile_weights", setup_context=_setup_context, backward=_backward)
