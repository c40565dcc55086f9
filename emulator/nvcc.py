"""CUDA source to PTX, with nvcc."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from os import PathLike
from pathlib import Path

__all__ = ["compile_cuda", "nvcc"]


def nvcc() -> Path | None:
    """The compiler, from CUDA_HOME, the wheel nvidia-cuda-nvcc, PATH, or /usr/local/cuda; None when there is none.

    The wheel comes before PATH because it is pinned with the other requirements.
    """
    candidates = []
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(Path(home) / "bin" / "nvcc")
    candidates.append(Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "nvcc")
    if found := shutil.which("nvcc"):
        candidates.append(Path(found))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


@cache
def _version(compiler: Path) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def compile_cuda(
    source: str | PathLike[str],
    arch: str = "sm_90a",
    *,
    line_info: bool = True,
    options: Sequence[str] = (),
) -> Path:
    """Compiles a .cu file, or CUDA source text, to PTX and returns the PTX's path.

    Results are cached by content in the temporary folder; files that the source includes are part of the content.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("no nvcc: set CUDA_HOME, put it on PATH, or pip install nvidia-cuda-nvcc")
    folder = Path(tempfile.gettempdir()) / f"moe_ext_emulator_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    if isinstance(source, str) and "\n" in source:
        path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.cu"
        if not path.exists():
            _write(path, source.encode())
    else:
        path = Path(source).resolve()

    flags = ["-std=c++17", "-O3", f"-arch={arch.replace('sm_', 'compute_')}", *options]
    if line_info:
        flags.append("-lineinfo")
    content = hashlib.sha256(repr((_version(compiler), flags, str(path))).encode())
    for part in _inputs(compiler, path, flags):
        content.update(part.read_bytes())
    out = folder / f"{path.stem}.{arch}.{content.hexdigest()[:16]}.ptx"
    if not out.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / "out.ptx"
            _run([compiler, "-ptx", *flags, "-o", fresh, path])
            fresh.replace(out)  # in one step: other processes may look for it
    return out


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as fresh:
        fresh.write(data)
    Path(fresh.name).replace(path)


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr}{done.stdout}")
    return done.stdout


def _inputs(compiler: Path, path: Path, flags: Sequence[str]) -> list[Path]:
    """The source and the files that it includes, the toolkit's own aside."""
    if '#include "' not in path.read_text():
        return [path]
    rule = _run([compiler, "-MM", *flags, path])
    return [Path(name) for name in rule.replace("\\\n", " ").split(":", 1)[1].split()]
