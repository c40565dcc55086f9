"""The precision of routers and losses: float32 whatever surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A region in which autocast is off: it would do matrix products in half precision."""
    # torch.autocast refuses devices without autocast, among them meta.
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def wide(x: Tensor) -> Tensor:
    """x in the dtype that routers and losses compute in: float32, or float64 for float64 x."""
    return x if x.dtype == torch.float64 else x.float()
