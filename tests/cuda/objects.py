"""What the compiler made of the kernels: registers, memory and instructions of each, read from the built library."""

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest


@dataclass
class Kernel:
    """One kernel, compiled for one architecture."""

    arch: str
    name: str  # demangled
    registers: int
    stack: int
    local: int
    shared: int
    instructions: list[str] = field(default_factory=list)  # opcodes with modifiers, in order

    def count(self, *prefixes: str) -> int:
        return sum(opcode.startswith(prefixes) for opcode in self.instructions)

    def __str__(self) -> str:
        return f"{self.arch} {self.name}"


def tool(name: str) -> str:
    """cuobjdump or nvdisasm, from the wheels that are pinned for it or from PATH."""
    folders = [Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin"]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(Path(home) / "bin")
    path = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    if path is None:
        pytest.skip(f"{name} is missing: pip install -r requirements/dev.txt")
    return path


def library() -> Path:
    """The extension with CUDA kernels that `make check-cuda` built."""
    folder = os.environ.get("MOE_EXT_CUDA_BUILD")
    if folder is None:
        pytest.skip("no build of the CUDA kernels to look at: make check-cuda")
    found = sorted(Path(folder).glob("package/moe_ext/_C*.so"))
    assert found, f"{folder} has no extension"
    return found[0]


def _run(*command: str | Path) -> str:
    environment = os.environ | {"PATH": f"{Path(tool('nvdisasm')).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@cache
def kernels() -> list[Kernel]:
    """Every kernel of every architecture."""
    path = library()
    found: dict[tuple[str, str], Kernel] = {}
    arch = ""
    name = ""
    for line in _run(tool("cuobjdump"), "-res-usage", path).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found[arch, name] = Kernel(arch, name, registers, stack, local, shared)
    for line in _run(tool("cuobjdump"), "-sass", path).splitlines():
        if match := re.match(r"\s*(?:code for|arch =) (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            name = match[1]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+|@!?UPT\s+|@!?PT\s+)?([A-Z][\w.]*)", line):
            found[arch, name].instructions.append(match[1])
    names = subprocess.run(
        ["c++filt"], input="\n".join(name for _, name in found), check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for kernel, demangled in zip(found.values(), names, strict=True):
        kernel.name = demangled.removeprefix("void ")
    return list(found.values())
