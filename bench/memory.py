"""Bytes that autograd keeps between the forward and the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.problem import Layer, Problem


def saved_bytes(layer: Layer, problem: Problem) -> int:
    """Bytes of the distinct storages saved for backward, less those of x and the weights."""
    # The list keeps every saved tensor alive, so that no address is used twice.
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(problem.x)
    given = {leaf.untyped_storage().data_ptr() for leaf in problem.leaves.values()}
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    del y
    return sum(size for address, size in kept.items() if address not in given)
