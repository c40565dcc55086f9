"""Thousands of malformed calls, in a process of their own so that a crash is a failed test and not the end of all."""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


ON_CHIPS = [pytest.param(1500, chip, marks=pytest.mark.virtual) for chip in ("sm_80", "sm_90a")]


@pytest.mark.slow
@pytest.mark.parametrize(("num_calls", "chip"), [(10_000, None), *ON_CHIPS])
def test_malformed_calls_never_crash(tmp_path: Path, num_calls: int, chip: str | None) -> None:
    log = tmp_path / "last_call.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    if chip is None:
        environment |= {"MALLOC_PERTURB_": "165"}
        if ctypes.util.find_library("c_malloc_debug"):
            # glibc's checking allocator: a write past either end of a block aborts when the block is freed.
            environment |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-m", "tests.ops.fuzz", str(log), str(num_calls), "0"]
    finished = subprocess.run(
        [*command, *([] if chip is None else [chip])], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=900,
    )  # fmt: skip
    last_call = log.read_text() if log.exists() else "none"
    assert finished.returncode == 0, f"exit {finished.returncode} in call {last_call}{finished.stdout[-3000:]}"
    outcomes = eval(finished.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == num_calls
    # Neither all refused nor all let through: the calls are near the border.
    assert num_calls // 10 < outcomes["returned"] < num_calls * 9 // 10
