"""PTX of kernels around one matrix instruction, and a check that ptxas accepts it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import emulator

__all__ = ["kernel", "load_registers", "module", "names", "ptxas_refuses", "store_registers"]


def names(prefix: str, count: int) -> str:
    """{%a0, %a1, …}"""
    return "{" + ", ".join(f"%{prefix}{k}" for k in range(count)) + "}"


def kernel(
    name: str, body: str, *, pointers: Sequence[str], scalars: Sequence[str] = (), registers: Sequence[str] = ()
) -> str:
    """An entry whose pointer parameters are loaded into %p_<name>, its .u64 scalars into %s_<name>.

    %thread, %lane, %block and %at hold tid.x, its lane, ctaid.x, and the number of the thread in the grid. `registers`
    are declarations.
    """
    parameters = ",\n".join(f"  .param .u64 {name}_{p}" for p in [*pointers, *scalars])
    loads = [f"ld.param.u64 %p_{p}, [{name}_{p}];" for p in pointers]
    loads += [f"ld.param.u64 %s_{s}, [{name}_{s}];" for s in scalars]
    declared = [f".reg .b64 %p_{p};" for p in pointers] + [f".reg .b64 %s_{s};" for s in scalars] + list(registers)
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return f""".visible .entry {name}(
{parameters}
) {{
  .reg .pred %yes, %no, %q;
  .reg .b32 %thread, %lane, %block, %threads, %at, %r<16>;
  .reg .b64 %w<16>;
  {chr(10).join(declared)}
  mov.u32 %thread, %tid.x;
  mov.u32 %block, %ctaid.x;
  mov.u32 %threads, %ntid.x;
  mad.lo.u32 %at, %block, %threads, %thread;
  and.b32 %lane, %thread, 31;
  setp.eq.u32 %yes, %lane, %lane;
  setp.ne.u32 %no, %lane, %lane;
  {chr(10).join(loads)}
{lines}
  ret;
}}
"""


def _address(pointer: str, count: int, size: int) -> str:
    # Registers of a warp follow each other: [warp][register][lane].
    return f"""shr.u32 %r0, %at, 5;
    mul.lo.u32 %r0, %r0, {count * 32};
    add.u32 %r0, %r0, %lane;
    mul.wide.u32 %w0, %r0, {size};
    add.u64 %w0, %p_{pointer}, %w0;
"""


def load_registers(pointer: str, prefix: str, count: int, bits: int = 32) -> str:
    """Loads %<prefix>0 … from an array [warp][register][lane]."""
    size = bits // 8
    loads = [f"ld.global.b{bits} %{prefix}{k}, [%w0+{k * 32 * size}];" for k in range(count)]
    return _address(pointer, count, size) + "\n".join(loads) + "\n"


def store_registers(pointer: str, prefix: str, count: int, bits: int = 32) -> str:
    """The way back."""
    size = bits // 8
    stores = [f"st.global.b{bits} [%w0+{k * 32 * size}], %{prefix}{k};" for k in range(count)]
    return _address(pointer, count, size) + "\n".join(stores) + "\n"


def module(entries: str | Sequence[str], target: str, *, shared: bool = False, check: bool = True) -> str:
    """A whole file. `shared`: with dynamic shared memory `memory`, aligned to 1024 bytes. `check`: by ptxas."""
    text = f".version 8.8\n.target {target}\n.address_size 64\n"
    if shared:
        text += ".extern .shared .align 1024 .b8 memory[];\n"
    text += entries if isinstance(entries, str) else "\n".join(entries)
    if check and (message := ptxas_refuses(text, target)):
        raise AssertionError(f"ptxas refuses the test's own PTX:\n{message}")
    return text


@cache
def _ptxas() -> str | None:
    found = shutil.which("ptxas")
    nvcc = emulator.nvcc()
    if found is None and nvcc is not None and Path(nvcc).with_name("ptxas").exists():
        found = str(Path(nvcc).with_name("ptxas"))
    return found


def ptxas_refuses(text: str, target: str) -> str:
    """What ptxas says against the text; empty when nothing, or when there is no ptxas."""
    ptxas = _ptxas()
    if ptxas is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        done = subprocess.run(
            [ptxas, f"-arch={target}", "-O0", "-o", str(Path(folder) / "kernel.cubin"), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr + done.stdout if done.returncode else ""
