"""What a launch did: counters per kernel, source line and instruction."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from emulator import _core

__all__ = ["InstructionCounts", "Launch", "LaunchCounters", "LineCounts"]

_FIELDS: tuple[str, ...] = _core.COUNTER_FIELDS


class LaunchCounters:
    """The totals of a launch: every field of the native Counters, and what exists only per launch."""

    warp_instructions: int
    lane_instructions: int
    matrix_macs: int
    global_requests: int
    global_bytes: int
    global_sectors: int
    global_sectors_ideal: int
    global_atomics: int
    shared_requests: int
    shared_bytes: int
    shared_wavefronts: int
    shared_wavefronts_ideal: int
    async_bytes: int
    barriers: int
    divergent_branches: int

    def __init__(self, record: _core.LaunchRecord) -> None:
        for field in _FIELDS:
            setattr(self, field, getattr(record.total, field))
        self.distinct_sectors_read: int = record.distinct_sectors_read
        self.distinct_sectors_written: int = record.distinct_sectors_written
        self.instructions_by_class: dict[str, int] = record.instructions_by_class

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond those that shared memory needs without conflicts."""
        return self.shared_wavefronts - self.shared_wavefronts_ideal

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __repr__(self) -> str:
        return f"LaunchCounters({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


class LineCounts(NamedTuple):
    """The instructions of one source line, summed."""

    file: str
    line: int
    counters: _core.Counters


class InstructionCounts(NamedTuple):
    """One PTX instruction."""

    ptx_line: int
    file: str
    line: int
    kind: str
    opcode: str
    counters: _core.Counters


def _counts(counters: _core.Counters) -> dict[str, int]:
    return {field: value for field in _FIELDS if (value := getattr(counters, field))}


class Launch:
    """The record of one launch."""

    def __init__(self, record: _core.LaunchRecord) -> None:
        self._record = record
        self.number: int = record.number
        self.kernel: str = record.kernel
        self.chip: str = record.chip
        self.grid: tuple[int, int, int] = tuple(record.grid)
        self.block: tuple[int, int, int] = tuple(record.block)
        self.cluster: tuple[int, int, int] = tuple(record.cluster)
        self.dynamic_shared_bytes: int = record.dynamic_shared_bytes
        self.static_shared_bytes: int = record.static_shared_bytes
        self.stream: int = record.stream
        self.host_seconds: float = record.host_seconds
        self.counters = LaunchCounters(record)

    @property
    def lines_never_executed(self) -> list[int]:
        """PTX lines that no warp reached."""
        return self._record.lines_never_executed

    def instructions(self) -> list[InstructionCounts]:
        """Each executed instruction, in the order of the PTX. Empty when the GPU does not count."""
        files = self._record.files
        return [
            InstructionCounts(
                i.ptx_line, files[i.file] if i.file < len(files) else "", i.line, i.kind, i.opcode, i.counters
            )
            for i in self._record.instructions
        ]

    def lines(self) -> list[LineCounts]:
        """Sums per source line, sorted by file and line. Without -lineinfo everything is on line 0."""
        sums: dict[tuple[str, int], _core.Counters] = {}
        for i in self.instructions():
            total = sums.setdefault((i.file, i.line), _core.Counters())
            total += i.counters
        return [LineCounts(file, line, counters) for (file, line), counters in sorted(sums.items())]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values; counters that are zero are left out of lines and instructions."""
        return {
            "number": self.number,
            "kernel": self.kernel,
            "chip": self.chip,
            "grid": list(self.grid),
            "block": list(self.block),
            "cluster": list(self.cluster),
            "dynamic_shared_bytes": self.dynamic_shared_bytes,
            "static_shared_bytes": self.static_shared_bytes,
            "stream": self.stream,
            "host_seconds": self.host_seconds,
            "counters": self.counters.to_dict(),
            "lines": [{"file": x.file, "line": x.line, **_counts(x.counters)} for x in self.lines()],
            "instructions": [
                {
                    "ptx_line": x.ptx_line,
                    "file": x.file,
                    "line": x.line,
                    "kind": x.kind,
                    "opcode": x.opcode,
                    **_counts(x.counters),
                }
                for x in self.instructions()
            ],
            "lines_never_executed": list(self.lines_never_executed),
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def table(self, *, lines: int = 20) -> None:
        """Prints the counters, and those of the busiest source lines."""
        from emulator.report import print_launch

        print_launch(self, lines)

    def __repr__(self) -> str:
        return f"<launch {self.number} of {self.kernel}, grid {self.grid}, block {self.block}>"
