"""The one handle through which Python adds fake, autograd and autocast kernels to the ops that C++ defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "moe_ext"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def raw(name: str) -> torch._ops.OpOverload:
    """The overload that C++ registered as ``moe_ext::<name>``."""
    return getattr(torch.ops.moe_ext, name).default


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the function that gives the shapes and dtypes of ``moe_ext::<name>`` without computing anything."""
    return torch.library.register_fake(f"{NAMESPACE}::{name}", lib=LIBRARY)
