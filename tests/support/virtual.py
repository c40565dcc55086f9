"""The ops of moe_ext on a virtual GPU: their CUDA launchers, run by ``emulator``, on plain CPU tensors.

    with virtual.ops_on("sm_80", seed=1) as gpu:
        y = moe_ext.fused_experts(x, w_gate_up, w_down, topk_weights, topk_ids)

Inside, the CPU kernels of ``torch.ops.moe_ext`` are replaced by those that ``make virtual`` builds, and CPU tensors are
made in the memory of the virtual GPU. What stands above the kernels (autograd, autocast, torch.compile, torch.func)
notices nothing. Tensors made before must be copied: the GPU does not know their memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import emulator

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(os.environ.get("MOE_EXT_VIRTUAL_LIBRARY") or ROOT / "build" / "virtual" / "libmoe_ext_virtual.so")


@functools.cache
def why_not() -> str | None:
    """What keeps the ops from running on a virtual GPU here; None if they can."""
    try:
        import emulator  # noqa: F401
    except ImportError as error:
        return f"the virtual GPU is not built: run `make virtual` ({error})"
    if not LIBRARY.exists():
        return f"the kernels for the virtual GPU are not built: run `make virtual` ({LIBRARY} is missing)"
    return None


@functools.cache
def _overloads() -> dict[str, torch._ops.OpOverload]:
    """Every op that runs on a virtual GPU, by its name in ``torch.ops.moe_ext``."""
    import moe_ext  # noqa: F401 - registers the ops that are replaced

    torch.ops.load_library(str(LIBRARY))
    names = [name.partition("::")[2] for name in ops_of("moe_ext_virtual")]
    return {name: getattr(torch.ops.moe_ext_virtual, name).default for name in names}


def ops_of(namespace: str) -> list[str]:
    """The qualified names of all registered ops of a namespace."""
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{namespace}::"))


@contextlib.contextmanager
def ops_on(chip: str, *, seed: int = 0, completion: str = "random", counters: bool = False) -> Iterator[emulator.Gpu]:
    """Runs the ops on a virtual GPU for the length of the block.

    When it ends, a fault that a kernel ran into is raised with its report, and it is an error if a launcher made the
    host wait for the GPU.

    Args:
        chip: a name that ``python -m emulator chips`` lists, or an architecture.
        seed: of the order of warps and blocks.
        completion: when asynchronous copies arrive: "random", "latest", ...
        counters: count what memory is asked for, and instructions per source line.
    """
    gpu = _gpu(chip)
    gpu.seed, gpu.completion, gpu.counters = seed, completion, counters
    gpu.clear_fault()
    gpu.clear_launches()
    gpu.clear_host_calls()
    with gpu, gpu.torch_memory(), _redirected(), contextlib.ExitStack() as stack:
        _far_memory.append(stack)
        try:
            yield gpu
        finally:
            _far_memory.remove(stack)
    waited = gpu.host_calls().synchronising
    assert not waited, f"the host waited for the GPU: {waited}"


# What takes far memory away again, of each block that is open.
_far_memory: list[contextlib.ExitStack] = []


def far_memory(num_elements: int, dtype: torch.dtype, places: Iterable[tuple[int, int]]) -> torch.Tensor:
    """Address space of this size of which a virtual GPU may touch the places, (begin, number) of elements.

    Ordinary memory is written from end to end when it is made, so it cannot be this large. It lasts until the end of
    ``ops_on``.
    """
    library = ctypes.CDLL(str(LIBRARY))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    reserved = mmap.mmap(-1, num_elements * dtype.itemsize, flags=flags)
    memory = torch.frombuffer(reserved, dtype=dtype)
    for begin, number in places:
        pointer = ctypes.c_void_p(memory.data_ptr() + begin * dtype.itemsize)
        library.moe_virtual_add_memory(pointer, ctypes.c_size_t(number * dtype.itemsize))
        _far_memory[-1].callback(library.moe_virtual_remove_memory, pointer)
    return memory


@functools.cache
def _gpu(chip: str) -> emulator.Gpu:
    """One for each chip, as a new one has to decode every kernel again."""
    import emulator

    return emulator.Gpu(chip, host_threads=1)


@contextlib.contextmanager
def _redirected() -> Iterator[None]:
    """Exchanges the CPU kernels. The dispatcher keeps those it had, and takes them up again when the library goes."""
    library = torch.library.Library("moe_ext", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for name, overload in _overloads().items():
            library.impl(name, _kernel(overload), "CPU")
    try:
        yield
    finally:
        library._destroy()


def _kernel(overload: torch._ops.OpOverload) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def kernel(*args: Any) -> Any:
        # Straight to the kernel: whatever modes and transforms are on, the op that was called has dealt with them.
        return overload.redispatch(keys, *args)

    return kernel
