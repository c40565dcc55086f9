"""`python -m emulator`."""

import json
import subprocess
import sys

import pytest

import emulator

SOURCE = """
extern "C" __global__ void scale(const float* x, float* out, int n, float by) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = by * x[i];
}
"""


@pytest.fixture(scope="module")
def ptx():
    if emulator.nvcc() is None:
        pytest.skip("no nvcc")
    return str(emulator.compile_cuda(SOURCE, "sm_80"))


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "emulator", *arguments], capture_output=True, text=True)


def test_profile(ptx):
    arguments = ("--grid", "8", "--block", "128", "--arg", "f32[1024]", "--arg", "f32[1024]=empty", "--arg", "i32:1024")
    done = run("profile", ptx, "--kernel", "scale", *arguments, "--arg", "f32:0.5", "--chip", "A100")
    assert done.returncode == 0, done.stderr
    assert "scale on A100" in done.stdout
    assert "busiest source lines" in done.stdout
    done = run("profile", ptx, *arguments, "--arg", "f32:0.5", "--json")
    assert json.loads(done.stdout)["counters"]["global_sectors"] == 256


def test_profile_of_cuda_source(tmp_path):
    if emulator.nvcc() is None:
        pytest.skip("no nvcc")
    (tmp_path / "k.cu").write_text(SOURCE)
    arguments = [word for text in ("f32[64]", "f32[64]", "i32:64", "f32:1") for word in ("--arg", text)]
    done = run("profile", str(tmp_path / "k.cu"), "--block", "64", *arguments, "--chip", "L4")
    assert done.returncode == 0, done.stderr
    assert "k.cu:4" in done.stdout


def test_profile_reports_faults(ptx):
    done = run(
        "profile", ptx, "--block", "128", "--arg", "f32[8]", "--arg", "f32[128]", "--arg", "i32:128", "--arg", "f32:1"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("out_of_bounds: ")


@pytest.mark.parametrize("argument", ["x32[4]", "i32", "f32[1]=sevens"])
def test_bad_arguments(ptx, argument):
    done = run("profile", ptx, "--arg", argument)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_chips():
    done = run("chips")
    assert done.returncode == 0
    assert all(chip.name in done.stdout for chip in emulator.chips())
