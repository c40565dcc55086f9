"""Ten thousand malformed calls, in a process of their own so that a crash is a failed test and not the end of all."""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_malformed_calls_never_crash(tmp_path: Path) -> None:
    log = tmp_path / "last_call.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_PERTURB_": "165"}
    if ctypes.util.find_library("c_malloc_debug"):
        # glibc's checking allocator: a write past either end of a block aborts when the block is freed.
        environment |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-m", "tests.ops.fuzz", str(log), "10000", "0"]
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900
    )
    last_call = log.read_text() if log.exists() else "none"
    assert finished.returncode == 0, f"exit {finished.returncode} in call {last_call}{finished.stdout[-3000:]}"
    outcomes = eval(finished.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == 10_000
    # Neither all refused nor all let through: the calls are near the border.
    assert 1000 < outcomes["returned"] < 9000
