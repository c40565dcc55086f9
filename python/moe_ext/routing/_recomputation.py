"""State that a forward pass moves, and that a checkpoint must not move again when it recomputes that forward pass."""

import torch
from torch import Tensor


def recomputing() -> bool:
    """Whether this runs inside of a backward pass: a checkpointed forward over again. False inside of torch.compile."""
    # torch.utils.checkpoint tells its recomputations apart by the same number. Both of its forms recompute in backward.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def assign_unless_recomputing(state: Tensor, value: Tensor) -> None:
    """`state.copy_(value)`, but nothing in a recomputation. Of a compiled forward, too, that is recomputed whole."""
    if torch.compiler.is_compiling():
        _assign(state, value)
    elif not recomputing():
        state.copy_(value)


# What a compiled graph runs is decided when it runs, hence an op.
@torch.library.custom_op("moe_ext_routing::assign_unless_recomputing", mutates_args=("state",))
def _assign(state: Tensor, value: Tensor) -> None:
    assign_unless_recomputing(state, value)


@_assign.register_fake
def _assign_fake(state: Tensor, value: Tensor) -> None:
    return None
