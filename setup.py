"""Builds the extension ``moe_ext._C`` with CMake and Ninja. Project metadata stands in pyproject.toml.

Environment variables that are honoured:

==========================  ==========================================================================
``MOE_EXT_CUDA``            ``auto`` (default), ``on`` or ``off``: whether the CUDA kernels are built
``TORCH_CUDA_ARCH_LIST``    architectures in PyTorch's notation, for example ``8.0;9.0a;12.0+PTX``
``CUDA_HOME``               the CUDA toolkit; otherwise the wheels of ``nvidia-cuda-nvcc``, ``nvcc`` on PATH
``MAX_JOBS``                parallel compiler processes (default: the CPUs this process may use)
``NVCC_THREADS``            threads inside one nvcc process; ``MAX_JOBS`` is divided by it
``CMAKE_BUILD_TYPE``        default ``Release``
``CMAKE_ARGS``              more arguments for the configure step
``VERBOSE``                 ``1`` prints the compiler command lines
``CC``, ``CXX``,            read by CMake itself
``CXXFLAGS``, ``CUDAFLAGS``
==========================  ==========================================================================

ccache is used for C++ where it is found. The build tree (``build/cmake-*``) is kept between builds, so a rebuild
compiles only what changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
HOW_TO_INSTALL = "pip install --no-build-isolation . needs setuptools, torch, cmake, ninja and pybind11 beforehand."


def fail(message: str) -> NoReturn:
    raise SystemExit(f"moe_ext: {message}")


def require_setuptools(minimum: int = 77) -> None:
    """Older releases reject pyproject.toml's licence line with a page of schema text."""
    if int(setuptools.__version__.split(".")[0]) < minimum:
        fail(f"setuptools {minimum} or newer is needed, found {setuptools.__version__}: pip install -U setuptools")


def require_tool(name: str) -> str:
    """The program's path; pip's own copy (next to this Python) counts before the system's, which is often older."""
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    path = shutil.which(name, path=search)
    if path is None:
        fail(f"{name} was not found. {HOW_TO_INSTALL}")
    return path


def require_torch_version() -> str:
    try:
        import torch
    except ImportError as error:
        fail(f"torch cannot be imported by {sys.executable} ({error}). {HOW_TO_INSTALL}")
    return str(torch.__version__)


def require_python_headers() -> None:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        fail(f"{header} is missing: install the development package of this Python (python3-dev, python3-devel).")


def usable_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cmake_cuda_architectures(arch_list: str) -> str:
    """PyTorch's notation to CMake's: ``8.0;9.0a;12.0+PTX`` becomes ``80-real;90a-real;120``."""
    architectures = []
    for arch in re.split(r"[;,\s]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", arch)
        if match is None:
            fail(f"TORCH_CUDA_ARCH_LIST: '{arch}' is not of the form 9.0, 9.0a or 9.0+PTX")
        major, minor, suffix, ptx = match.groups()
        architectures.append(f"{major}{minor}{suffix}{'' if ptx else '-real'}")
    return ";".join(architectures)


def configure_arguments(library_dir: Path) -> list[str]:
    cuda = os.environ.get("MOE_EXT_CUDA", "auto").lower()
    if cuda not in ("auto", "on", "off"):
        fail(f"MOE_EXT_CUDA must be auto, on or off, not '{cuda}'")
    definitions = {
        "CMAKE_BUILD_TYPE": os.environ.get("CMAKE_BUILD_TYPE", "Release"),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": library_dir.as_posix(),
        "CMAKE_MAKE_PROGRAM": require_tool("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "MOE_EXT_CUDA": cuda,
    }
    if cuda != "off":
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
        definitions["CMAKE_CUDA_ARCHITECTURES"] = cmake_cuda_architectures(archs)
    if ccache := shutil.which("ccache"):
        for language in ("C", "CXX"):
            if f"CMAKE_{language}_COMPILER_LAUNCHER" not in os.environ:
                definitions[f"CMAKE_{language}_COMPILER_LAUNCHER"] = ccache
    # Which definitions CMake reads depends on whether CUDA is built; the rest need no warning.
    arguments = ["-G", "Ninja", "--no-warn-unused-cli"]
    arguments += [f"-D{name}={value}" for name, value in definitions.items()]
    return arguments + shlex.split(os.environ.get("CMAKE_ARGS", ""))


class CMakeExtension(Extension):
    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        torch_version = require_torch_version()
        require_python_headers()
        cmake = require_tool("cmake")
        build_dir = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        library_dir = build_dir / "lib"

        nvcc_threads = int(os.environ.get("NVCC_THREADS", "1"))
        jobs = max(1, int(os.environ.get("MAX_JOBS", usable_cpus())) // nvcc_threads)
        environment = dict(os.environ)
        if nvcc_threads > 1:
            environment["CUDAFLAGS"] = f"{environment.get('CUDAFLAGS', '')} --threads={nvcc_threads}".strip()

        # A build tree remembers the compiler, Python and torch it was configured for, so when one of them
        # changes it is configured anew.
        compiler_variables = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDA_HOME", "CUDAFLAGS")
        arguments = configure_arguments(library_dir)
        inputs = [cmake, torch_version, *arguments, *(environment.get(name, "") for name in compiler_variables)]
        fingerprint = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
        stamp = build_dir / "configured-for"
        fresh = ["--fresh"] if not stamp.is_file() or stamp.read_text() != fingerprint else []
        if fresh:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(library_dir, ignore_errors=True)
        self.run_tool([cmake, "-S", str(ROOT), "-B", str(build_dir), *fresh, *arguments], environment)
        verbose = ["--verbose"] if os.environ.get("VERBOSE", "0") not in ("", "0") else []
        self.run_tool([cmake, "--build", str(build_dir), "--target", "_C", "-j", str(jobs), *verbose], environment)
        stamp.write_text(fingerprint)

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library_dir / target.name), str(target))
        package_dir = ROOT / "python" / "moe_ext" if self.editable_mode else target.parent
        write_build_info(package_dir / "_build_info.py", torch_version, build_dir)

    def run(self) -> None:
        # setuptools clears `inplace` while it builds; the build info must still know it.
        self.editable_mode = self.editable_mode or bool(self.inplace)
        super().run()

    @staticmethod
    def run_tool(command: list[str], environment: dict[str, str]) -> None:
        print("+", shlex.join(command), flush=True)
        try:
            subprocess.run(command, check=True, env=environment)
        except subprocess.CalledProcessError as error:
            fail(f"'{Path(command[0]).name}' failed with exit code {error.returncode}; its message stands above.")


def write_build_info(path: Path, torch_version: str, build_dir: Path) -> None:
    """What the extension was built with. Holds no date and no path of the build tree: equal inputs, equal file."""
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build_dir / "CMakeCache.txt").read_text(), flags=re.MULTILINE))
    detected = "".join(file.read_text() for file in build_dir.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"))
    compiler = dict(re.findall(r'^set\(CMAKE_CXX_COMPILER_(ID|VERSION) "(.*)"\)$', detected, flags=re.MULTILINE))
    build_type = cache["CMAKE_BUILD_TYPE"]
    flags = f"{cache.get('CMAKE_CXX_FLAGS', '')} {cache.get(f'CMAKE_CXX_FLAGS_{build_type.upper()}', '')}"
    values = {
        "TORCH_VERSION": torch_version,
        "PYTHON_VERSION": ".".join(map(str, sys.version_info[:3])),
        "COMPILER": f"{compiler.get('ID', 'unknown')} {compiler.get('VERSION', 'unknown')}",
        "CXX_FLAGS": " ".join(flags.split()),
        "BUILD_TYPE": build_type,
        "CUDA": cache["MOE_EXT_CUDA"],
    }
    lines = ['"""Written by setup.py: what this copy of moe_ext was built with."""', ""]
    lines += [f"{name}: str = {value!r}" for name, value in values.items()]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    require_setuptools()
    setup(ext_modules=[CMakeExtension("moe_ext._C")], cmdclass={"build_ext": CMakeBuild})
