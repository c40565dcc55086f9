"""Modules and kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from emulator import _core
from emulator.arguments import Parameter, pack
from emulator.launch import Launch

if TYPE_CHECKING:
    from emulator.gpu import Gpu

__all__ = ["Kernel", "Module"]


def _triple(value: int | Sequence[int], what: str) -> tuple[int, int, int]:
    sizes = tuple(map(int, value)) if isinstance(value, Iterable) else (int(value),)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"{what} has {len(sizes)} dimensions, want 1 to 3")
    x, y, z = sizes + (1,) * (3 - len(sizes))
    return x, y, z


class Kernel:
    """A kernel of a module. Calling it launches it and waits for its end."""

    def __init__(self, gpu: Gpu, native: _core.Kernel) -> None:
        self.gpu = gpu
        self._native = native
        self.name: str = native.name
        self.demangled: str = native.demangled
        self.parameters = [Parameter(*facts) for facts in native.parameters]
        self.static_shared_bytes: int = native.static_shared_bytes
        self.local_bytes: int = native.local_bytes

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *args: Any,
        shared_bytes: int = 0,
        cluster: int | Sequence[int] | None = None,
        cooperative: bool = False,
        programmatic: bool = False,
        reachable: Iterable[Any] = (),
    ) -> Launch:
        """Launches it. `args` are in the order of the parameters.

        NumPy arrays and CPU tensors are passed as pointers; the kernel may touch their bytes during this launch.
        `reachable` lists arrays that it finds by other ways, such as pointers inside a struct.
        """
        packed = pack(self.parameters, self._native.parameter_bytes, args, reachable)
        record = self._native.launch(
            _triple(grid, "grid"),
            _triple(block, "block"),
            (1, 1, 1) if cluster is None else _triple(cluster, "cluster"),
            shared_bytes,
            cooperative,
            programmatic,
            packed.data,
            packed.ranges,
        )
        return Launch(record)

    def __repr__(self) -> str:
        return f"<kernel {self.demangled}({', '.join(map(str, self.parameters))})>"


class Module:
    """What one source of PTX holds, on a GPU. A binary has one part per translation unit."""

    def __init__(self, gpu: Gpu, parts: Sequence[_core.Module]) -> None:
        self.gpu = gpu
        self._parts = parts
        self._kernels = {kernel.name: Kernel(gpu, kernel) for part in parts for kernel in part.kernels}

    @property
    def target(self) -> str:
        """Such as "sm_90a"."""
        return self._parts[0].target

    @property
    def kernels(self) -> list[str]:
        """The kernels' names as in the PTX."""
        return list(self._kernels)

    @property
    def variables(self) -> dict[str, tuple[int, int]]:
        """Address and bytes of each module variable."""
        return {name: place for part in self._parts for name, place in part.variables.items()}

    def __getitem__(self, name: str) -> Kernel:
        """By name in the PTX, demangled name, or a part of it that only one kernel has."""
        if name in self._kernels:
            return self._kernels[name]
        for fits in (lambda k: name == k.demangled, lambda k: name in k.demangled or name in k.name):
            found = [kernel for kernel in self._kernels.values() if fits(kernel)]
            if len(found) == 1:
                return found[0]
            if found:
                raise KeyError(f"{name!r} fits {len(found)} kernels: {', '.join(k.demangled for k in found)}")
        known = ", ".join(k.demangled for k in self._kernels.values()) or "none"
        raise KeyError(f"no kernel {name!r}; there are: {known}")

    def __contains__(self, name: str) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<module for {self.target}: {', '.join(self._kernels)}>"
