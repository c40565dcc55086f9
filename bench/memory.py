"""Memory of a layer: what autograd keeps for backward, what a call takes at its peak, what packing keeps."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.problem import Layer, Problem
from bench.timing import Step


def saved_bytes(layer: Layer, problem: Problem) -> int:
    """Bytes of the distinct storages saved for backward, less those of x and the weights."""
    # The list keeps every saved tensor alive, so that no address is used twice.
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(problem.x)
    given = {leaf.untyped_storage().data_ptr() for leaf in problem.leaves.values()}
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    del y
    return sum(size for address, size in kept.items() if address not in given)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) << 10


def resident_bytes() -> int | None:
    """Memory of this process, once what it freed has gone back to the system; None where that cannot be known."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def _release_what_is_kept() -> None:
    """What moe_ext kept from calls before would else count as there already."""
    release = getattr(sys.modules.get("moe_ext"), "release_memory", None)
    if release is not None:
        release()


def peak_bytes(step: Step) -> int | None:
    """The most by which the process grows over what it was before the first of two calls, while it makes the second:
    what one call takes at its peak with its results, and whatever was kept since the first call (a workspace). Packed
    weights, made before, don't count. Pages, not requests: to a few hundred KiB. None where the system has no such
    counter."""
    _release_what_is_kept()
    before = resident_bytes()
    if before is None:
        return None
    step()
    resident_bytes()
    try:
        # Linux: the peak starts anew from here.
        Path("/proc/self/clear_refs").write_text("5")
        step()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def bytes_kept_by(build: Callable[[], Layer]) -> tuple[Layer, int | None]:
    """What `build` returns, and by how much the process grew: weights packed in another order, above all."""
    gc.collect()  # of what went before; too slow to do it more often
    before = resident_bytes()
    layer = build()
    after = resident_bytes()
    return layer, None if before is None or after is None else max(0, after - before)
