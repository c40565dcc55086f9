"""Routers stay in float32 whatever surrounds them (Switch Transformer, arXiv:2101.03961, "selective precision")."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
