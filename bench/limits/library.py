"""`kernels.cpp`, compiled by the system's compiler into build/bench when first needed, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.machine import REPOSITORY

_SOURCES: Final = ("kernels.cpp", "peaks.h", "streams.h")
_FLAGS: Final = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")
CACHE: Final = REPOSITORY / "build" / "bench"


class NoKernels(OSError):
    """The limits cannot be measured here; the message says why."""


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(command[0]) is None:
        raise NoKernels(f"measuring the machine's limits needs a C++ compiler; there is no {command[0]} (set CXX)")
    return command


def _compile(cache: Path) -> Path:
    """The shared library, named after what it was made from."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NoKernels("the machine's limits are measured on x86-64 Linux only")
    folder = Path(__file__).parent
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(version + b"".join((folder / name).read_bytes() for name in _SOURCES)).hexdigest()[:16]
    library = cache / f"limits-{digest}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    # Under a name of its own first: two processes may be at it.
    partial = cache / f"{library.stem}.{os.getpid()}.so"
    command = [*compiler, *_FLAGS, str(folder / _SOURCES[0]), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first_error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
        raise NoKernels(f"{compiler[0]} could not compile the kernels that measure the machine's limits: {first_error}")
    os.replace(partial, library)
    return library


class Kernels:
    """What this machine can run of `kernels.cpp`: names of `units` (arithmetic) and `ways` (to use memory)."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name in ("peak", "bandwidth", "first_touch"):
            getattr(library, f"limits_{name}").restype = ctypes.c_double
        for name in ("unit", "way"):
            getattr(library, f"limits_{name}").restype = ctypes.c_char_p
        self._library = library
        present = [unit for unit in range(library.limits_units()) if library.limits_present(unit)]
        self._units = {library.limits_unit(unit).decode(): unit for unit in present}
        self._ways = {library.limits_way(way).decode(): way for way in range(library.limits_ways())}

    @property
    def units(self) -> list[str]:
        """Names of units that this CPU has, such as "amx bf16"."""
        return list(self._units)

    @property
    def ways(self) -> list[str]:
        """Such as "read, 8 streams"."""
        return list(self._ways)

    def peak(self, unit: str, threads: int, seconds: float = 0.05, trials: int = 5) -> float:
        """Operations per second of all threads; a multiply-add counts twice."""
        rate: float = self._library.limits_peak(self._units[unit], threads, ctypes.c_double(seconds), trials)
        return rate

    def bandwidth(self, way: str, threads: int, num_bytes: int, seconds: float = 0.05, trials: int = 5) -> float:
        """Bytes per second of all threads, on `num_bytes` (rounded to 4 KiB) for each. Raises MemoryError."""
        size = ctypes.c_size_t(max(1, num_bytes >> 12) << 12)
        rate: float = self._library.limits_bandwidth(self._ways[way], threads, size, ctypes.c_double(seconds), trials)
        return self._checked(rate)

    def first_touch(self, threads: int, num_bytes: int, huge: bool, trials: int = 3) -> float:
        """Bytes per second at which fresh memory appears, in 4 KiB or huge pages. Raises MemoryError."""
        rate: float = self._library.limits_first_touch(threads, ctypes.c_size_t(num_bytes), int(huge), trials)
        return self._checked(rate)

    @staticmethod
    def _checked(rate: float) -> float:
        if not rate:
            raise MemoryError("not enough memory to measure its bandwidth")
        return rate


@functools.cache
def load(cache: Path = CACHE) -> Kernels:
    """Raises NoKernels where there is no compiler, or no such CPU."""
    return Kernels(_compile(cache))
