"""How planted bugs are declared, compiled, run and compared with the marks in their sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import emulator

__all__ = ["CASES", "Case", "Run", "compile_all", "planted"]

FOLDER = Path(__file__).parent
_MARK = re.compile(r"// BUG(?:\((\w+)\))?: ([\w| ]+)")


class Run:
    """One launch of one twin: what a case's function gets."""

    def __init__(self, gpu: emulator.Gpu, kernel: Any, bug: bool) -> None:
        self.gpu = gpu
        self.bug = bug
        self._kernel = kernel

    def __call__(self, grid: Any, block: Any, *args: Any, **options: Any) -> None:
        self._kernel(grid, block, *args, **options)

    def array(self, values: Any, dtype: Any = np.int32) -> Any:
        return self.gpu.array(np.ascontiguousarray(values, dtype))

    def empty(self, shape: int | Sequence[int], dtype: Any = np.int32) -> Any:
        return self.gpu.empty(shape, dtype)

    def zeros(self, shape: int | Sequence[int], dtype: Any = np.int32) -> Any:
        return self.gpu.zeros(shape, dtype)


@dataclass(frozen=True)
class Case:
    """A planted bug and its sound twin."""

    source: str
    kernel: str
    variant: str | None  # the enumerator of `template <int kBug>`; None: `template <bool kBug>`
    run: Callable[[Run], None]
    arch: str
    chip: str
    marks: dict[int, frozenset[str]] = field(hash=False)  # line → kinds that may be reported there

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return f"{Path(self.source).stem}-{self.kernel}" + (f"-{self.variant}" if self.variant else "")

    @property
    def wrong_result(self) -> bool:
        """Whether only the results show it: no rule of the machine is broken."""
        return any("wrong_result" in kinds for kinds in self.marks.values())

    def launch(self, *, bug: bool, seed: int, completion: str = "random", host_threads: int = 1) -> None:
        """Runs one twin and compares its results. Raises emulator.Fault or AssertionError.

        With one host thread the schedule follows from the seed alone.
        """
        gpu, module = _module(self.source, self.arch, self.chip)
        gpu.seed, gpu.completion, gpu.host_threads = seed, completion, host_threads
        # Threads that poll for what another host thread does need time for that thread to come.
        gpu.hang_limit = 100_000 if host_threads == 1 else 20_000_000
        self.run(Run(gpu, module[self._mangled(bug)], bug))

    def _mangled(self, bug: bool) -> str:
        if self.variant is None:
            argument = f"Lb{int(bug)}E"
        else:
            argument = f"Li{_constant(self.source, self.variant) if bug else 0}E"
        return f"_Z{len(self.kernel)}{self.kernel}I{argument}"

    def matches(self, fault: emulator.Fault) -> bool:
        """Whether the kind is right and the place is a marked line (of the kernel, where a helper was inlined)."""
        places = [(fault.file, fault.line), (fault.caller_file, fault.caller_line)]
        lines = [line for file, line in places if file and Path(file).name == self.source]
        if fault.kind == "launch_limit" and not lines:
            lines = list(self.marks)  # no instruction has run: there is no place
        return any(fault.kind in self.marks.get(line, ()) for line in lines)


CASES: list[Case] = []


def planted(source: str, arch: str = "sm_80", chip: str | None = None) -> Callable[..., Callable[[Run], None]]:
    """Declares the function as the launch of the kernel of its name: one case for each bug that is marked there."""

    def declare(run: Callable[[Run], None]) -> Callable[[Run], None]:
        kernel = run.__name__
        marks: dict[str | None, dict[int, frozenset[str]]] = {}
        for line, text in _region(source, kernel):
            for variant, kinds in _MARK.findall(text):
                marks.setdefault(variant or None, {})[line] = frozenset(kind.strip() for kind in kinds.split("|"))
        assert marks, f"no marks for {kernel} in {source}"
        for variant, lines in marks.items():
            target = chip or ("A100" if arch == "sm_80" else "H100")
            CASES.append(Case(source, kernel, variant, run, arch, target, lines))
        return run

    return declare


def compile_all() -> None:
    """Compiles every source once, two at a time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: _ptx(*item), sorted({(case.source, case.arch) for case in CASES})))


@cache
def _ptx(source: str, arch: str) -> Path:
    return emulator.compile_cuda(FOLDER / source, arch)


@cache
def _module(source: str, arch: str, chip: str) -> tuple[emulator.Gpu, Any]:
    gpu = emulator.Gpu(chip)
    return gpu, gpu.load(_ptx(source, arch))


@cache
def _text(source: str) -> str:
    return (FOLDER / source).read_text()


def _region(source: str, kernel: str) -> list[tuple[int, str]]:
    """The numbered lines that belong to a kernel: from the end of the one before it to its own PLANT."""
    lines = _text(source).split("\n")
    own = [i for i, line in enumerate(lines) if re.search(rf"PLANT\w*\(\s*{kernel},", line)]
    assert own, f"{source} has no PLANT({kernel}, …)"
    others = [i for i, line in enumerate(lines[: own[0] - 1]) if re.match(r"(#define )?PLANT", line)]
    first = others[-1] + 1 if others else 0
    return list(enumerate(lines[first : own[0]], first + 1))


@cache
def _constant(source: str, name: str) -> int:
    found = re.search(rf"\b{name} = (\d+)", _text(source))
    assert found is not None, f"{source} does not define {name}"
    return int(found.group(1))
