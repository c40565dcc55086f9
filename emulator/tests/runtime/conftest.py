"""Builds the launchers once, against the stand-in for the CUDA runtime."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import emulator

PACKAGE = Path(emulator.__file__).parent
HERE = Path(__file__).parent
NVCC_FLAGS = [
    "-std=c++17",
    "-O2",
    "-lineinfo",
    "-cudart=none",
    "-Xcompiler=-fPIC",
    "--no-compress",
    "-gencode=arch=compute_80,code=compute_80",
    "-gencode=arch=compute_90a,code=compute_90a",
]


def build(
    source: Path, folder: Path, extra: Sequence[str] = (), libraries: Sequence[str] = (), leave_out: str | None = None
) -> Path:
    """A shared library of one .cu file, linked with the stand-in. `leave_out`: flags that contain it are not passed."""
    compiler = emulator.nvcc()
    if compiler is None:
        pytest.skip("no nvcc")
    if not (PACKAGE / "libvgpu_cudart.a").exists():
        pytest.skip("the stand-in was not built: no CUDA headers")
    flags = [flag for flag in NVCC_FLAGS if leave_out is None or leave_out not in flag]
    target = folder / f"{source.stem}.o"
    subprocess.run([compiler, "-c", *flags, *extra, "-o", target, source], check=True)
    library = folder / f"lib{source.stem}.so"
    stand_in = [PACKAGE / "libvgpu_cudart.a", f"-L{PACKAGE}", "-lvgpu", f"-Wl,-rpath,{PACKAGE}"]
    subprocess.run(["g++", "-shared", "-Wl,-z,defs", "-o", library, target, *stand_in, *libraries], check=True)
    return library


class Launchers:
    """The library's functions. Integers that are too large for an int are passed as pointers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def __getattr__(self, name: str):
        function = getattr(self._library, name)
        if name in ("error_string", "error_name"):
            function.restype = ctypes.c_char_p

        def call(*arguments):
            return function(*map(_argument, arguments))

        return call


def _argument(value):
    if value is None or (isinstance(value, int) and value > 0x7FFFFFFF):
        return ctypes.c_void_p(value)
    if hasattr(value, "ctypes"):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, ctypes.c_void_p | ctypes.c_size_t | ctypes.c_int | ctypes.c_float):
        return ctypes.byref(value)
    return value


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return build(HERE / "launchers.cu", tmp_path_factory.mktemp("launchers"))


@pytest.fixture(scope="session")
def lib(library) -> Launchers:
    return Launchers(library)


@pytest.fixture
def fresh_lib(library, tmp_path) -> Launchers:
    """The library once more, so that no earlier test set attributes of its kernels."""
    return Launchers(Path(shutil.copy(library, tmp_path / "fresh.so")))


@pytest.fixture(scope="session")
def build_library() -> Callable[..., Path]:
    return build


@pytest.fixture
def build_text(tmp_path) -> Callable[..., Launchers]:
    """Builds CUDA source text."""

    def make(text: str, *extra: str, leave_out: str | None = None) -> Launchers:
        source = tmp_path / "text.cu"
        source.write_text(text)
        return Launchers(build(source, tmp_path, extra, leave_out=leave_out))

    return make


@pytest.fixture
def gpu():
    with emulator.Gpu("H100") as gpu:
        yield gpu
        gpu.clear_fault()
