"""A selection around another one: what layers ask a selection about is answered by the one inside."""

from typing import Any

from torch import nn

from moe_ext.routing._precision import Float32Module


class SelectionWrapper(Float32Module):
    """Keeps `selection` and passes on what it does with non-finite logits, and its bound on the rows.

    `score` and `expert_bias` are for the wrapper to say: it may have its own.
    """

    def __init__(self, selection: nn.Module) -> None:
        super().__init__()
        self.selection = selection

    @property
    def nonfinite(self) -> str:
        """That of the selection inside."""
        return getattr(self.selection, "nonfinite", "propagate")

    def max_rows(self, num_tokens: int, **side: Any) -> int | None:
        """That of the selection inside."""
        bound = getattr(self.selection, "max_rows", None)
        return None if bound is None else bound(num_tokens, **side)
