"""What a contender is, and why one may sit a cell out.

A contender builds a callable x [T,H] -> y [T,H] on the problem's own weights, router included. What it cannot do here,
or not within a stated number of bytes, it says instead of doing it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from bench.check import Bounds
from bench.machine import ISAS, without_folders
from bench.problem import Layer, Problem

# What a contender computes on: the weights as they lie in the model, a copy in an order of its own, or such a copy
# rounded to int8. Speeds are compared within one of these; the name is that of moe_ext's contender.
WEIGHTS: Final = {"plain": "moe_ext", "packed": "moe_ext_packed", "int8": "moe_ext_int8"}


def missing_module(name: str, attribute: str | None = None) -> str | None:
    """Why `name` (and its `attribute`) cannot be had, or None."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        return without_folders(f"{name} cannot be imported: {error}")
    return None if attribute is None or hasattr(module, attribute) else f"{name} has no {attribute}"


@dataclass(frozen=True)
class Contender:
    """`missing()` says why it cannot run here at all; `refuses(problem)` why not this shape; `scratch(problem, mode)`
    is (bytes, what for) of hidden per-call traffic that rules out large shapes. `dtype` and `forward_only` say what it
    computes, `isa` what instruction set its kernels are bound to (None: the one that is pinned). `bounds` replace those
    of the dtype where its numbers are coarser by design. `pause`: seconds until its threads stop spinning after a call,
    waited for so that the next contender has the machine for itself."""

    name: str
    what: str
    build: Callable[[Problem], Layer]
    missing: Callable[[], str | None] = lambda: None
    ours: bool = False
    default: bool = True
    weights: str = "plain"
    dtype: torch.dtype | None = None
    forward_only: bool = False
    isa: str | None = None
    refuses: Callable[[Problem], str | None] = lambda problem: None
    scratch: Callable[[Problem, str], tuple[int, str]] | None = None
    bounds: Bounds | None = None
    pause: float = 0.0


def exclusion(
    contender: Contender, problem: Problem, mode: str, byte_limit: int, pinned_isa: str | None = None
) -> str | None:
    """Why the contender sits this cell out, or None. With `pinned_isa`, who is bound to a better one does."""
    missing = contender.missing()
    if missing:
        return missing
    if pinned_isa and contender.isa and ISAS.index(contender.isa) > ISAS.index(pinned_isa):
        return f"needs {contender.isa}, this run is pinned to {pinned_isa}"
    if contender.forward_only and mode != "fwd":
        return "inference only"
    if contender.dtype not in (None, problem.dtype):
        return f"{str(contender.dtype).removeprefix('torch.')} only"
    refusal = contender.refuses(problem)
    if refusal or contender.scratch is None:
        return refusal
    size, purpose = contender.scratch(problem, mode)
    if size <= byte_limit:
        return None
    return f"would move {size / 2**30:.1f} GiB per call ({purpose}); the limit is {byte_limit / 2**30:g} GiB"
