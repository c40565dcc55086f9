"""``python -m moe_ext``: what was built, what this machine has and what is in use. Paste it into a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import import_module

import torch

import moe_ext
import moe_ext._C as _C


def report() -> dict[str, dict[str, str]]:
    """Sections of names and values, ready to print."""
    build = {name: str(value) for name, value in _C.build_info().items()}
    try:
        recorded = vars(import_module("moe_ext._build_info"))
    except ModuleNotFoundError:
        recorded = {}
    for name, value in recorded.items():
        if name.isupper():
            build.setdefault(name.lower().removesuffix("_version"), _plain(value))
    compiled, available = _C.cpu_isas_compiled(), _C.cpu_isas_available()
    return {
        "versions": {
            "moe_ext": moe_ext.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "build": build,
        "cpu": {
            "isas compiled in": _plain(compiled),
            "isas available": _plain(available),
            "isa in use": _C.cpu_isa(),
            "MOE_EXT_CPU_ISA": os.environ.get("MOE_EXT_CPU_ISA", "not set"),
            "threads": str(torch.get_num_threads()),
        },
        "cuda": {
            "torch built for": torch.version.cuda or "no CUDA",
            "devices": _plain([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]),
        },
    }


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def render(sections: Mapping[str, Mapping[str, str]]) -> str:
    """The sections as plain text, all values in one column."""
    width = max(len(name) for values in sections.values() for name in values)
    lines: list[str] = []
    for title, values in sections.items():
        lines += [title, *(f"  {name:<{width}}  {value}" for name, value in values.items()), ""]
    return "\n".join(lines[:-1])


if __name__ == "__main__":
    print(render(report()))
