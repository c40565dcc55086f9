"""Routers stay in float32 whatever surrounds them (Switch Transformer, arXiv:2101.03961, "selective precision")."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A region in which autocast is off."""
    # torch.autocast refuses devices without autocast, among them meta.
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def wide(x: Tensor) -> Tensor:
    """x in the dtype that routers compute in: float32, or float64 for float64 x."""
    return x if x.dtype == torch.float64 else x.float()


class Float32Module(nn.Module):
    """A module whose floating-point parameters and buffers refuse to be narrower than float32.

    `model.to(torch.bfloat16)` moves them to another device, but leaves float32 as it is; float64 is allowed.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Module":
        # Module.to, .half, .bfloat16, .cuda ... all end here.
        def never_below_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype not in (torch.float32, torch.float64):
                # From the original, not from `moved`: that one has lost its low bits.
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(never_below_float32, recurse)
