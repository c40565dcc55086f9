"""The virtual GPU as Python sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from types import TracebackType
from typing import Any

import numpy as np

from emulator import _core
from emulator.arrays import place, torch_dtype
from emulator.fault import Fault
from emulator.kernel import Module
from emulator.launch import Launch

__all__ = ["Gpu", "HostCalls", "chip", "chips"]


def chips() -> list[_core.Chip]:
    """The chips that can be emulated."""
    return _core.chips()


def chip(name: str) -> _core.Chip:
    """A chip by name ("H100") or architecture ("sm_90a")."""
    return _core.chip(name)


class HostCalls(dict[str, int]):
    """How often each function of the CUDA runtime was called; `.synchronising` has those that waited for the GPU."""

    def __init__(self, calls: dict[str, int], synchronising: dict[str, int]) -> None:
        super().__init__(calls)
        self.synchronising = synchronising


class Gpu:
    """A virtual GPU. Launches run at once, to their end, and raise Fault when the kernel is wrong.

    `with gpu:` makes it the one that CUDA launchers linked with the stand-in run on. A fault that such a launcher
    left behind is raised at the end of the block.
    """

    def __init__(
        self,
        chip: str = "H100",
        *,
        seed: int = 0,
        checks: bool = True,
        counters: bool = True,
        uninitialised: bool = True,
        completion: str = "random",
        accumulate: str = "sequential",
        host_threads: int = 0,
        hang_limit: int = 20_000_000,
    ) -> None:
        self._native = _core.Gpu(chip)
        self._launches: list[Launch] = []
        self._before: list[_core.Gpu] = []
        for name, value in (
            ("seed", seed),
            ("checks", checks),
            ("counters", counters),
            ("uninitialised", uninitialised),
            ("completion", completion),
            ("accumulate", accumulate),
            ("host_threads", host_threads),
            ("hang_limit", hang_limit),
        ):
            setattr(self._native, name, value)

    # Options, read at each launch.
    seed = property(lambda self: self._native.seed, lambda self, v: setattr(self._native, "seed", v))
    checks = property(lambda self: self._native.checks, lambda self, v: setattr(self._native, "checks", v))
    counters = property(lambda self: self._native.counters, lambda self, v: setattr(self._native, "counters", v))
    uninitialised = property(
        lambda self: self._native.uninitialised, lambda self, v: setattr(self._native, "uninitialised", v)
    )
    completion = property(lambda self: self._native.completion, lambda self, v: setattr(self._native, "completion", v))
    accumulate = property(lambda self: self._native.accumulate, lambda self, v: setattr(self._native, "accumulate", v))
    host_threads = property(
        lambda self: self._native.host_threads, lambda self, v: setattr(self._native, "host_threads", v)
    )
    hang_limit = property(lambda self: self._native.hang_limit, lambda self, v: setattr(self._native, "hang_limit", v))

    @property
    def chip(self) -> _core.Chip:
        """What it emulates. Can be set by name; modules that are loaded already stay as they are."""
        return self._native.chip

    @chip.setter
    def chip(self, name: str) -> None:
        self._native.chip = name

    def load(self, source: str | PathLike[str]) -> Module:
        """A module from PTX text, a .ptx file, or an object, shared library, fat binary or cubin that carries PTX."""
        return Module(self, self._native.load(fspath(source)))

    # Memory

    def _bytes(self, size: int, label: str) -> np.ndarray:
        if size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._native.allocate(size, label), np.uint8)

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32, *, label: str = "gpu.empty") -> Any:
        """An array in emulator memory, with red zones around it. Nothing of it counts as written.

        With a torch dtype it is a tensor. What the host writes goes unseen: see mark_written().
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        wanted = torch_dtype(dtype)
        if wanted is not None:
            import torch

            raw = self._bytes(int(np.prod(shape, dtype=np.int64)) * wanted.itemsize, label)
            return torch.from_numpy(raw).view(wanted).reshape(shape)
        dtype = np.dtype(dtype)
        return self._bytes(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, label).view(dtype).reshape(shape)

    def zeros(self, shape: int | Sequence[int], dtype: Any = np.float32, *, label: str = "gpu.zeros") -> Any:
        """The same, filled with zeros, all written."""
        array = self.empty(shape, dtype, label=label)
        array[...] = 0
        self.mark_written(array)
        return array

    def array(self, values: Any, dtype: Any = None, *, label: str = "gpu.array") -> Any:
        """A copy of an array or a tensor in emulator memory, all written."""
        if place(values) is None or isinstance(values, np.ndarray):
            values = np.asarray(values, dtype=dtype)
        elif dtype is not None:
            values = values.to(dtype)
        array = self.empty(values.shape, values.dtype, label=label)
        array[...] = values
        self.mark_written(array)
        return array

    def mark_written(self, array: Any) -> None:
        """Tells that the host wrote all bytes of the array."""
        where = place(array)
        if where is None:
            raise TypeError(f"want an array or a tensor, got {type(array).__name__}")
        self._native.mark_written(where.begin, where.end - where.begin)

    def mark_fresh(self, array: Any) -> None:
        """Fills the array with poison (0xFF) and counts nothing of it as written."""
        where = place(array)
        if where is None:
            raise TypeError(f"want an array or a tensor, got {type(array).__name__}")
        self._native.mark_fresh(where.begin, where.end - where.begin)

    @property
    def live_bytes(self) -> int:
        """Bytes in live allocations."""
        return self._native.live_bytes

    # What was launched and called

    @property
    def launches(self) -> list[Launch]:
        """Every launch since the last clear_launches(), newest last."""
        self._launches += map(Launch, self._native.launches_since(len(self._launches)))
        return self._launches

    def clear_launches(self) -> None:
        self._native.clear_launches()
        self._launches = []

    def host_calls(self) -> HostCalls:
        """The calls of CUDA launchers to the runtime while this GPU was current."""
        return HostCalls(*_core.calls(self._native))

    def clear_host_calls(self) -> None:
        _core.clear_calls(self._native)

    # Faults of launchers

    @property
    def fault(self) -> Fault | None:
        """The fault that a CUDA launcher ran into; every CUDA call fails until clear_fault()."""
        return _core.pending_fault(self._native)

    def clear_fault(self) -> Fault | None:
        """Makes CUDA calls work again. Returns the fault that was pending."""
        return _core.clear_fault(self._native)

    def __enter__(self) -> Gpu:
        self._before.append(_core.make_current(self._native))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.make_current(self._before.pop())
        if error is None and (fault := self.clear_fault()) is not None:
            raise fault

    # torch

    @contextlib.contextmanager
    def torch_memory(self) -> Iterator[None]:
        """Inside, the CPU tensors that torch makes live in this GPU's memory: with red zones, and found when used
        after they were freed. Their bytes count as written, except inside fresh_memory()."""
        import torch  # noqa: F401  (loads the libraries that the module is linked to)

        from emulator import _torch_memory

        _torch_memory.enter(self._native.capsule())
        try:
            yield
        finally:
            _torch_memory.leave()

    @contextlib.contextmanager
    def fresh_memory(self) -> Iterator[None]:
        """Inside torch_memory(): tensors that are made here are poisoned, and a kernel that reads them before a
        kernel wrote them faults. The host's own writes go unseen, so only outputs of kernels belong here."""
        from emulator import _torch_memory

        _torch_memory.enter_fresh()
        try:
            yield
        finally:
            _torch_memory.leave_fresh()

    def __repr__(self) -> str:
        return f"<Gpu {self.chip.name}, seed {self.seed}>"
