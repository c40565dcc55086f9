"""Watches which raw ops reach their kernels, and with what."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Inside it, every call of a raw op is appended to ``calls`` as (name, args), below autograd and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "moe_ext":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    def args_of(self, name: str) -> tuple[Any, ...]:
        """The arguments of the only call of ``name``."""
        (args,) = [args for op, args in self.calls if op == name]
        return args

    def dtypes_of(self, name: str) -> list[torch.dtype | None]:
        """The dtype of each argument of that call, None for what is no tensor."""
        return [arg.dtype if isinstance(arg, Tensor) else None for arg in self.args_of(name)]
