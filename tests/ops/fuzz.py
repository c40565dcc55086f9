"""Throws malformed calls at the public functions and the raw ops: ``python -m tests.ops.fuzz LOG CALLS SEED [CHIP]``.

Starts from valid calls and spoils a few arguments of each. A call may raise any ordinary exception or return; it must
not kill the process, corrupt memory, hang, or return something unreadable. The call about to be made always stands in
LOG, so that whoever started this can tell which one was the last. Prints what came of the calls. With CHIP, kernels
run on that virtual GPU, which notices each access that is not their own.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import random
import resource
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import moe_ext
from tests.ops.samples import samples
from tests.ops.test_errors import valid
from tests.support import virtual
from tests.support.backends import Backend

if TYPE_CHECKING:
    import emulator

# Above what the process needs to start. A huge size must end in an exception, not in the memory of the machine.
MEMORY_LIMIT = 2 << 30
INTS = (0, 1, 2, 3, 5, 6, 7, 12, 13, 100, -1, -2, 10**6, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
STRINGS = (
    "", "softmax", "sigmoid", "sqrtsoftplus", "none", "-inf", "0", "propagate", "sanitize", "error", "swiglu", "SwiGLU",
    "relu2", "clamped_swiglu", "output", "input", "preact", "fp8", "\0", "swiglu\0", "×", "x" * 10_000,
)  # fmt: skip
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
)  # fmt: skip
# What a public function may raise; NotImplementedError is a RuntimeError.
EXPECTED = (TypeError, ValueError, RuntimeError, MemoryError)
STRANGERS = (None, True, 3, 2.5, "text", (), [1, 2], {}, object(), torch.float32)


def readdressed(tensor: Tensor, rng: random.Random) -> Tensor:
    """The tensor in another shape, or with other strides."""
    kind = rng.randrange(9)
    if kind == 0:
        return tensor.unsqueeze(rng.randrange(tensor.ndim + 1))
    if kind == 1:
        return tensor.flatten()
    if kind == 2 and tensor.ndim and tensor.shape[0]:
        return tensor[rng.randrange(tensor.shape[0])]
    if kind == 3:
        return tensor.mT if tensor.ndim >= 2 else tensor.reshape(-1, 1)
    if kind == 4 and tensor.numel():
        return tensor.flatten()[:1].expand(tensor.shape)
    if kind == 5:
        return torch.stack((tensor, tensor), dim=-1)[..., 0]
    if kind == 6:
        return tensor.repeat_interleave(2, dim=rng.randrange(tensor.ndim)) if tensor.ndim else tensor
    if kind == 7 and tensor.ndim:
        return tensor.narrow(rng.randrange(tensor.ndim), 0, 0)
    shape = [max(0, size + rng.choice((-1, 0, 0, 1))) for size in tensor.shape]
    return torch.zeros(shape, dtype=tensor.dtype)


def refilled(tensor: Tensor, rng: random.Random) -> Tensor:
    """The tensor with other values: for indices such as no op should follow."""
    if tensor.is_floating_point():
        changed = tensor.detach().clone(memory_format=torch.contiguous_format)
        if changed.numel():
            value = torch.tensor(rng.choice(FLOATS), dtype=torch.float64).to(tensor.dtype)
            changed.view(-1)[rng.randrange(changed.numel())] = value
        return changed
    if tensor.dtype not in (torch.int32, torch.int64):
        return tensor.clone()
    kind = rng.randrange(6)
    if kind == 0:
        return tensor.flatten()[torch.randperm(tensor.numel())].view(tensor.shape)
    if kind == 1:
        return torch.randint_like(tensor, -(2**31), 2**31 - 1)
    if kind == 2:
        return torch.randint_like(tensor, -2, 20)
    if kind == 3:
        return tensor * rng.choice((-1, 2, 1000))
    if kind == 4:
        return torch.full_like(tensor, rng.choice((-1, 0, 5, 12, 13, 2**31 - 1, -(2**31))))
    changed = tensor.clone()
    if changed.numel():
        changed.view(-1)[rng.randrange(changed.numel())] = rng.choice((-1, 0, 5, 11, 12, 13, 2**31 - 1, -(2**31)))
    return changed


def spoiled(value: Any, rng: random.Random) -> Any:
    """Something in the place of ``value`` that may be wrong."""
    if rng.random() < 0.08:
        return rng.choice(STRANGERS)
    if isinstance(value, Tensor):
        kind = rng.randrange(12)
        if kind < 4:
            return readdressed(value, rng)
        if kind < 8:
            return refilled(value, rng)
        if kind < 10:
            return value.to(rng.choice(DTYPES))
        if kind == 10:
            return value.to("meta")
        return (
            value.to_sparse()
            if rng.random() < 0.2
            else value.detach().clone().requires_grad_(value.dtype.is_floating_point)
        )
    if isinstance(value, tuple):
        parts = list(value)
        position = rng.randrange(len(parts))
        parts[position] = spoiled(parts[position], rng)
        return type(value)(*parts) if hasattr(value, "_fields") and rng.random() < 0.9 else tuple(parts[:-1])
    if isinstance(value, bool):
        return rng.choice((True, False, 2, None))
    if isinstance(value, int):
        return rng.choice(INTS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, str):
        return rng.choice(STRINGS)
    # An absent optional tensor.
    return rng.choice((torch.zeros(5), torch.zeros(5, 8), torch.zeros(12, dtype=torch.int32), 0, 1, 4096, "text"))


def options_of(function: str) -> dict[str, Any]:
    """The keyword arguments that ``valid`` leaves out."""
    return {
        "route": {
            "score": "softmax", "softmax_after": False, "bias": None, "num_groups": 1, "topk_groups": 1, "group_top": 1,
            "group_fill": "-inf", "renormalize": False, "eps": 1e-20, "scale": 1.0, "nonfinite": "propagate",
        },
        "grouped_gemm": {"bias": None, "transposed": False, "gather": None},
        "soft_dispatch": {"token_mask": torch.ones(2, 6, dtype=torch.bool)},
        "soft_combine": {"token_mask": None},
        "fused_experts": {
            "activation": "swiglu", "b_gate_up": None, "b_down": None, "interleaved": False, "transposed": False,
            "apply_weights": "output", "save": "preact", "workspace_limit": None, "deterministic": False,
            "alpha": 1.702, "limit": 7.0,
        },
    }.get(function, {})  # fmt: skip


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type != "cpu":
            return f"{value.dtype}{list(value.shape)} {value.layout} {value.device}"
        content = f" = {value.tolist()}" if value.numel() <= 48 else ""
        return f"{value.dtype}{list(value.shape)} strides {list(value.stride())}{content}"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    return repr(value)[:60]


def read_all(value: Any) -> None:
    """Touches every byte of a result."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, Tensor) and part.device.type == "cpu":
            part.detach().clone()
            if part.numel() and part.dtype in (torch.float32, torch.float64):
                part.detach().sum().item()


def backward(value: Any) -> None:
    """Runs backward through what can be differentiated in a result."""
    parts = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Tensor)]
    parts = [part for part in parts if part.requires_grad]
    if parts:
        sum(part.sum() for part in parts).backward()  # type: ignore[union-attr]


def main(log: Path, num_calls: int, seed: int, chip: str | None) -> None:
    with virtual.ops_on(chip, seed=seed) if chip is not None else contextlib.nullcontext() as gpu:
        fuzz(log, num_calls, seed, gpu)


def fuzz(log: Path, num_calls: int, seed: int, gpu: emulator.Gpu | None) -> None:
    backend = Backend("cpu:any" if gpu is None else f"virtual:{gpu.chip.name}", gpu)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_LIMIT,) * 2)

    raw = [sample for dtype in (torch.float32, torch.bfloat16) for sample in samples(dtype)]
    public = ["route", "permute", "gather_rows", "grouped_gemm", "combine", "fused_experts"]
    public += ["soft_dispatch", "soft_combine"]
    outcomes: collections.Counter[str] = collections.Counter()
    with log.open("w") as last_call:
        for number in range(num_calls):
            if rng.random() < 0.4:
                name = rng.choice(public)
                arguments = backend.put({**valid(name), **options_of(name)})
                call, label = getattr(moe_ext, name), f"moe_ext.{name}"
            else:
                sample = rng.choice(raw)
                arguments = {str(position): arg for position, arg in enumerate(sample.args)}
                call, label = sample.overload, f"torch.ops.moe_ext.{sample.op}"
            for key in rng.sample(sorted(arguments), k=min(len(arguments), rng.choice((1, 1, 1, 2, 3)))):
                arguments[key] = spoiled(arguments[key], rng)
            if rng.random() < 0.02:
                del arguments[rng.choice(sorted(arguments))]

            last_call.seek(0)
            last_call.truncate()
            last_call.write(f"{number}: {label}({', '.join(f'{k}: {describe(v)}' for k, v in arguments.items())})\n")
            last_call.flush()
            try:
                if label.startswith("moe_ext"):
                    result = call(**arguments)
                else:
                    result = call(*arguments.values())
                read_all(result)
                backward(result)
                outcomes["returned"] += 1
            except SystemError:
                # How Python reports C++ code that broke its rules.
                raise
            except Exception as error:
                if label.startswith("moe_ext") and not isinstance(error, EXPECTED):
                    raise
                outcomes[type(error).__name__] += 1
            # Of all that may go wrong on a GPU only nonfinite="error" is meant to.
            if gpu is not None and (fault := gpu.clear_fault()) is not None and fault.kind != "trap":
                raise fault
    print(dict(outcomes.most_common()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
