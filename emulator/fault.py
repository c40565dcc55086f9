"""The exception that a faulty kernel raises."""

from typing import Any

from emulator import _core


class Fault(Exception):
    """What went wrong in a kernel, where, and who did it. `str()` of it is the whole report."""

    kind: str  # "out_of_bounds", …
    message: str
    kernel: str
    file: str
    line: int
    ptx_line: int
    caller_file: str
    caller_line: int
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    warp: int  # -1: not about one
    lane: int
    address: int | None
    instruction: str
    details: str

    def __init__(self, report: str = "", **fields: Any) -> None:
        super().__init__(report)
        for name, value in fields.items():
            setattr(self, name, value)

    def __reduce__(self) -> Any:
        return _rebuild, (str(self), self.__dict__)


def _rebuild(report: str, fields: dict[str, Any]) -> Fault:
    return Fault(report, **fields)


_core.set_fault_type(Fault)
