"""Autocast rules that lower the data of an op and leave its routing alone.

``torch.library.register_autocast`` lowers every floating-point argument. Ours must not: ``topk_weights`` and
``router_logits`` stay as they are, because the router's arithmetic is float32 everywhere. So each op names the
positions of its data arguments (x, rows, expert weights, biases), and only those are cast. float64 is never lowered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import LIBRARY, raw

_DEVICE_TYPES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def disabled() -> Any:
    """Context in which no autocast rule of any device is applied, whatever the caller switched on."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    return torch._C._ExcludeDispatchKeyGuard(keys.add(torch._C.DispatchKey.AutocastCUDA))


def lowered_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that ``tensor`` has once the autocast mode in force has been applied to it."""
    device_type = tensor.device.type
    if device_type not in _DEVICE_TYPES or not torch.is_autocast_enabled(device_type):
        return tensor.dtype
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.dtype
    return torch.get_autocast_dtype(device_type)


def lower(args: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """``args`` with the tensors at ``positions`` in the dtype that autocast asks for."""
    lowered = list(args)
    for position in positions:
        if isinstance(lowered[position], Tensor):
            lowered[position] = lowered[position].to(lowered_dtype(lowered[position]))
    return lowered


def register(name: str, positions: Sequence[int]) -> None:
    """Gives ``moe_ext::<name>`` an autocast rule that casts the arguments at ``positions``."""
    op = raw(name)

    def kernel(*args: Any) -> Any:
        # Lowered before autocast is switched off: the mode in force is what says to which dtype.
        lowered = lower(args, positions)
        with disabled():
            return op(*lowered)

    for key in _DEVICE_TYPES.values():
        LIBRARY.impl(name, kernel, key)
