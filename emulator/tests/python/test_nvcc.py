"""Compiling CUDA to PTX."""

import pytest

import emulator

pytestmark = pytest.mark.skipif(emulator.nvcc() is None, reason="no nvcc")


def test_results_are_cached_by_content(tmp_path):
    (tmp_path / "value.h").write_text("constexpr int kValue = 1;\n")
    source = tmp_path / "k.cu"
    source.write_text('#include "value.h"\nextern "C" __global__ void k(int* p) { *p = kValue; }\n')
    first = emulator.compile_cuda(source)
    assert emulator.compile_cuda(source) == first
    assert ".loc" in first.read_text()
    (tmp_path / "value.h").write_text("constexpr int kValue = 2;\n")
    assert emulator.compile_cuda(source) != first
    assert emulator.compile_cuda(source, "sm_80") != emulator.compile_cuda(source)
    assert ".target sm_80" in emulator.compile_cuda(source, "sm_80", line_info=False).read_text()


def test_errors_of_the_compiler():
    with pytest.raises(RuntimeError, match="this is not CUDA"):
        emulator.compile_cuda("\n#error this is not CUDA\n")
