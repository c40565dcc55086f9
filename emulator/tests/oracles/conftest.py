"""Virtual GPUs for the oracles: kernels whose code this project did not write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import emulator

CHIPS = {80: "A100", 90: "H100"}


@pytest.fixture
def make_gpu() -> Callable[..., Any]:
    """make_gpu(arch, seed=0): a strict GPU of compute capability 8.0 or 9.0 that completes asynchronous work late."""

    def make(arch: int, seed: int = 0, **options: Any) -> Any:
        return emulator.Gpu(CHIPS[arch], seed=seed, **options)

    return make


@pytest.fixture
def load_cuda(make_gpu: Callable[..., Any]) -> Callable[..., Any]:
    """load_cuda("wmma", 80, seed=0): a GPU and the module of cuda_headers/wmma.cu on it.

    With debug=True it is compiled for the debugger: without optimisation, so that everything goes through calls,
    local memory and generic addresses.
    """
    if emulator.nvcc() is None:
        pytest.skip("no nvcc: set CUDA_HOME, put it on PATH, or install the wheel nvidia-cuda-nvcc")

    def load(name: str, arch: int, seed: int = 0, *, debug: bool = False, **options: Any) -> Any:
        gpu = make_gpu(arch, seed, **options)
        source = Path(__file__).parent / "cuda_headers" / f"{name}.cu"
        flags = ["-G"] if debug else []
        target = {80: "sm_80", 90: "sm_90a"}[arch]
        return gpu, gpu.load(emulator.compile_cuda(source, target, line_info=not debug, options=flags))

    return load
