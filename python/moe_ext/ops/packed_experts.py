"""A cache of expert weights in the layout that the CPU kernels read fastest."""

from __future__ import annotations

from torch import Tensor

from . import _checks


class PackedExperts:
    """Expert weights laid out for inference, made again when a weight changes.

    The kernels read rows that are contiguous along the inner dimension, gate rows before up rows: ``w_gate_up``
    ``[num_experts, 2 * intermediate_size, hidden_size]`` and ``w_down`` ``[num_experts, hidden_size,
    intermediate_size]`` as `nn.Linear` keeps them. Weights that already lie so are used as they are, and cost nothing
    here. Of any others (``transposed``, or strided otherwise) a copy is kept: ``num_bytes`` says how much that is, at
    most the size of the weights. Interleaved gate and up rows are read where they are.

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
        self._states: list[tuple[int | None, int] | None] = [None, None]

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

    def weights(self) -> tuple[Tensor, Tensor]:
        """``w_gate_up`` and ``w_down``, neither transposed, contiguous along the inner dimension."""
        return self._current(0), self._current(1)

    def _current(self, which: int) -> Tensor:
        weight = self._weights[which].detach()
        rows = weight.transpose(1, 2) if self.transposed else weight
        if rows.stride(2) == 1:
            self._copies[which] = None
            return rows
        state = (None if weight.is_inference() else self._weights[which]._version, weight.data_ptr())
        copy = self._copies[which]
        if copy is None or self._states[which] != state:
            copy = rows.contiguous()
            self._copies[which], self._states[which] = copy, state
        return copy
