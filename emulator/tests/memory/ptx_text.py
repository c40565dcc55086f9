"""PTX modules from bodies of kernels, and a check that ptxas accepts them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

__all__ = ["entry", "fault_kind", "module", "ptxas_accepts"]

_REGISTERS = """
  .reg .pred %p<16>;
  .reg .b16 %h<32>;
  .reg .b32 %r<64>;
  .reg .b64 %d<64>;
  .reg .f32 %f<32>;
  .reg .f64 %g<16>;
  .reg .b128 %q<8>;
"""


def entry(name: str, body: str, *, pointers: int = 2, extra: str = "") -> str:
    """A kernel whose parameters p0, p1, … are pointers. It begins with them in %d0, %d1, …, %tid.x in %r0 and %d10."""
    parameters = ",\n".join(f"  .param .u64 {name}_p{k}" for k in range(pointers))
    loads = "\n".join(f"  ld.param.u64 %d{k}, [{name}_p{k}];" for k in range(pointers))
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return f""".visible .entry {name}(
{parameters}
) {{
{_REGISTERS}{extra}
{loads}
  mov.u32 %r0, %tid.x;
  cvt.u64.u32 %d10, %r0;
{lines}
  ret;
}}
"""


def module(entries: str | Iterable[str], *, target: str = "sm_90a", globals_: str = "") -> str:
    """A whole PTX file, which ptxas accepts."""
    text = f".version 9.0\n.target {target}\n.address_size 64\n{globals_}\n"
    text += entries if isinstance(entries, str) else "\n".join(entries)
    if message := ptxas_accepts(text, target):
        raise AssertionError(f"ptxas refuses the test's own PTX:\n{message}\n{text}")
    return text


@cache
def ptxas_accepts(text: str, target: str = "sm_90a") -> str:
    """What ptxas has against the text; empty when nothing, or when there is no ptxas."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "test.ptx"
        source.write_text(text)
        run = subprocess.run(
            [ptxas, f"-arch={target}", "-O0", source, "-o", Path(folder) / "out"],
            capture_output=True,
            text=True,
            check=False,
        )
    return run.stderr if run.returncode else ""


def fault_kind(caught: pytest.ExceptionInfo[Exception]) -> str:
    """The kind of the Fault that `pytest.raises` caught."""
    return caught.value.kind  # type: ignore[attr-defined]
