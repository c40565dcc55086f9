"""Which instruction set the CPU kernels use, and who may say so."""

import os
import platform
import subprocess
import sys

import pytest

from moe_ext import _C

WEAKEST_FIRST = ["portable", "avx2", "avx512", "avx512bf16", "amx"]


def load_with(isa: str) -> subprocess.CompletedProcess[str]:
    """A new process that loads the extension with MOE_EXT_CPU_ISA set, and prints the instruction set in use."""
    code = "import torch; from moe_ext import _C; print(_C.cpu_isa())"
    environment = {**os.environ, "MOE_EXT_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_available_ones_are_compiled_and_ordered() -> None:
    compiled, available = _C.cpu_isas_compiled(), _C.cpu_isas_available()
    assert compiled == [isa for isa in WEAKEST_FIRST if isa in compiled]
    assert available == [isa for isa in compiled if isa in available]
    assert compiled[0] == available[0] == "portable"


def test_each_can_be_chosen(cpu_isa: str) -> None:
    assert _C.cpu_isa() == cpu_isa


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
def test_what_linux_reports_is_found() -> None:
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next((set(line.split(":")[1].split()) for line in cpuinfo if line.startswith("flags")), set())
    needs = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512bf16": {"avx512_bf16"},
        "amx": {"amx_tile", "amx_bf16"},
    }
    expected, wanted = ["portable"], set[str]()
    for isa, more in needs.items():
        wanted |= more
        if isa in _C.cpu_isas_compiled() and wanted <= flags:
            expected.append(isa)
    if "amx" in expected and "amx" not in _C.cpu_isas_available():
        pytest.skip("the kernel did not grant this process the tile registers")
    assert _C.cpu_isas_available() == expected


def test_unknown_name_is_refused_and_changes_nothing() -> None:
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match=r"'sse9' is no instruction set, available: portable"):
        _C.set_cpu_isa("sse9")
    assert _C.cpu_isa() == before


def test_environment_pins_one() -> None:
    for isa in _C.cpu_isas_available():
        process = load_with(isa)
        assert process.returncode == 0, process.stderr
        assert process.stdout.strip() == isa


def test_empty_environment_variable_means_the_fastest() -> None:
    available = _C.cpu_isas_available()
    fastest = [available[-1]]
    if available[-1] == "avx512bf16":
        fastest.append("avx512")  # where pairs of bfloat16 are multiplied slowly
    process = load_with("")
    assert process.stdout.strip() in fastest, process.stderr


def test_what_the_environment_asks_for_in_vain_is_a_clear_import_error() -> None:
    process = load_with("sse9")
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "MOE_EXT_CPU_ISA is 'sse9'" in process.stderr
    assert "available: portable" in process.stderr
