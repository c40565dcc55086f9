"""Faults reach the host as error codes, stay, and keep their report."""

import numpy as np
import pytest

import emulator

ILLEGAL_ADDRESS, MISALIGNED, ASSERT, LAUNCH_FAILURE = 700, 716, 710, 719


def test_out_of_bounds_is_sticky(lib):
    gpu = emulator.Gpu("H100")
    with gpu:
        out = gpu.empty(4, np.int32)
        assert lib.run_out_of_bounds(out, 4) == ILLEGAL_ADDRESS
        assert lib.run_nothing(1, 1, 1, 1, 1, 1) == ILLEGAL_ADDRESS
        assert lib.last_error() == ILLEGAL_ADDRESS
        assert lib.device_synchronize() == ILLEGAL_ADDRESS
        report = lib.error_string(ILLEGAL_ADDRESS).decode()
        assert report.startswith("an illegal memory access was encountered\nout_of_bounds: ")
        assert "launchers.cu:" in report
        fault = gpu.clear_fault()
        assert fault.kind == "out_of_bounds"
        assert fault.kernel == "out_of_bounds"
        assert fault.file.endswith("launchers.cu")
        assert fault.thread == (0, 0, 0)
        assert str(fault) in report
        assert gpu.fault is None
        assert lib.run_nothing(1, 1, 1, 1, 1, 1) == 0
        assert lib.last_error() == 0


def test_a_fault_that_no_one_looked_at_is_raised(lib):
    with pytest.raises(emulator.Fault, match="out_of_bounds"), emulator.Gpu("H100") as gpu:
        lib.run_out_of_bounds(gpu.empty(4, np.int32), -1)
    with emulator.Gpu("H100"):
        assert lib.run_nothing(1, 1, 1, 1, 1, 1) == 0


def test_faults_belong_to_their_gpu(lib, gpu):
    other = emulator.Gpu("H100")
    with other:
        assert lib.run_misaligned(other.empty(8, np.int8)) == MISALIGNED
        with gpu:
            assert lib.run_nothing(1, 1, 1, 1, 1, 1) == 0
        assert other.clear_fault().kind == "misaligned"


def test_freed_memory(lib, gpu):
    import ctypes

    pointer = ctypes.c_void_p()
    assert lib.device_malloc(pointer, 16) == 0
    address = pointer.value
    assert lib.device_free(address) == 0
    assert lib.run_out_of_bounds(address, 0) == ILLEGAL_ADDRESS
    assert gpu.clear_fault().kind == "use_after_free"
    assert lib.device_free(address) == 1, "freed twice"


def test_traps(lib, gpu):
    assert lib.run_traps() == LAUNCH_FAILURE
    assert gpu.clear_fault().kind == "trap"


def test_asserts(lib, gpu):
    assert lib.run_asserts(gpu.array(np.array([3], np.int32))) == 0
    assert lib.run_asserts(gpu.array(np.array([4], np.int32))) == ASSERT
    assert "*value == 3" in str(gpu.clear_fault())
