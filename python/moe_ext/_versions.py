"""Tells, before the loader does it cryptically, when the installed PyTorch is too old for the extension."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps moe_ext"


def release(version: str) -> tuple[int, int]:
    """Major and minor number: (2, 13) for "2.13.0+cpu"."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ValueError(f"not a version: {version!r}")
    return int(found[1]), int(found[2])


def require(built_for: str, installed: str) -> None:
    """Raises ImportError when ``installed`` is older than ``built_for``. A newer PyTorch keeps the stable ABI."""
    if release(installed) < release(built_for):
        raise ImportError(
            f"moe_ext was built for torch {built_for}, but torch {installed} is installed, which is older. "
            f"Upgrade torch, or build moe_ext against this one: {REINSTALL}"
        )


def check_before_loading() -> None:
    """Compares with what the build wrote into ``_build_info.py``, where that file exists."""
    try:
        built_for = import_module("moe_ext._build_info").TORCH_VERSION
    except ModuleNotFoundError:
        return
    require(built_for, str(torch.__version__))


def check_after_loading(build_info: Mapping[str, Any]) -> None:
    """Compares with what the extension says about itself; catches a ``_build_info.py`` of another build."""
    built_for = str(build_info.get("torch", ""))
    if re.match(r"\d+\.\d+", built_for):
        require(built_for, str(torch.__version__))


def explain_failed_load(error: ImportError) -> str:
    """What to tell the user when ``moe_ext._C`` could not be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == "moe_ext._C":
        return f"the extension moe_ext._C has not been built for this Python; build it with: {REINSTALL}"
    return (
        f"the extension moe_ext._C could not be loaded with torch {torch.__version__}: {error}. "
        f"If torch has changed since it was built, rebuild it: {REINSTALL}"
    )
