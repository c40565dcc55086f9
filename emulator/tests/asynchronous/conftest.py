"""GPUs and modules for the tests of asynchronous copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import emulator

POLICIES = ["random", "latest", "lifo", "eager"]


@pytest.fixture(params=POLICIES)
def completion(request: pytest.FixtureRequest) -> str:
    """When asynchronous operations take effect."""
    return request.param


@cache
def _compiled(name: str) -> Path:
    return emulator.compile_cuda(Path(__file__).parent / f"{name}.cu", "sm_90a")


@pytest.fixture
def load_cuda() -> Callable[..., Any]:
    """load_cuda("tensor_copies", seed=1, completion="lifo"): the module of tensor_copies.cu on an H100 of its own."""
    if emulator.nvcc() is None:
        pytest.skip("no nvcc: set CUDA_HOME, put it on PATH, or install the wheel nvidia-cuda-nvcc")

    def load(name: str, **options: Any) -> Any:
        return emulator.Gpu("H100", **options).load(_compiled(name))

    return load
