"""Allocation, copies and fills; which of them make the host wait."""

import ctypes

import numpy as np
import pytest

TO_DEVICE, TO_HOST, ON_DEVICE, DEFAULT = 1, 2, 3, 4


@pytest.fixture
def block(lib, gpu):
    pointer = ctypes.c_void_p()
    assert lib.device_malloc(pointer, 4096) == 0
    return pointer.value


def test_round_trip(lib, gpu, block):
    data, back = np.arange(1024, dtype=np.int32), np.zeros(1024, np.int32)
    assert lib.copy(block, data, 4096, TO_DEVICE) == 0
    assert lib.copy(back, block, 4096, DEFAULT) == 0
    np.testing.assert_array_equal(back, data)


def test_alignment_and_size(lib, gpu, block):
    assert block % 256 == 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert lib.memory_info(free, total) == 0
    assert total.value == 80 << 30
    assert total.value - free.value >= 4096
    assert lib.device_malloc(ctypes.c_void_p(), ctypes.c_size_t(1 << 40).value) == 2


@pytest.mark.parametrize("kind", [TO_DEVICE, ON_DEVICE])
def test_copies_past_the_end_are_refused(lib, gpu, block, kind):
    source = gpu.array(np.zeros(2048, np.int32))
    assert lib.copy(block, source, 4097, kind) == 1
    assert b"past the end of cudaMalloc #" in lib.error_string(1)


def test_host_memory_is_no_device_memory(lib, gpu, block):
    assert lib.copy(np.zeros(4, np.int32), block, 16, ON_DEVICE) == 1


def test_rows(lib, gpu, block):
    data, back = np.arange(64, dtype=np.uint8).reshape(8, 8), np.zeros((8, 4), np.uint8)
    assert lib.copy_2d(block, 16, data, 8, 4, 8, TO_DEVICE) == 0
    assert lib.copy_2d(back, 4, block, 16, 4, 8, TO_HOST) == 0
    np.testing.assert_array_equal(back, data[:, :4])
    assert lib.copy_2d(block, 2, data, 8, 4, 8, TO_DEVICE) == 12


def test_what_was_not_written_stays_so_when_copied(lib, gpu, block):
    x, out = gpu.array(np.ones(8, np.float32)), gpu.empty(8)
    assert lib.fill(block, 0, 16) == 0  # half of the operand
    assert lib.run_add(x, block, out, 4, None) == 0
    half_written = gpu.empty(8)
    assert lib.copy(half_written, block, 32, ON_DEVICE) == 0
    assert lib.run_add(x, half_written, out, 4, None) == 0
    lib.run_add(x, half_written, out, 8, None)
    assert gpu.clear_fault().kind == "uninitialised_global"


def test_pinned_memory(lib, gpu):
    pointer, kind = ctypes.c_void_p(), ctypes.c_int()
    assert lib.host_malloc(pointer, 64) == 0
    assert lib.pointer_type(pointer.value, kind) == 0
    assert kind.value == 1
    assert lib.host_free(pointer.value) == 0
    assert lib.pointer_type(np.zeros(1), kind) == 0
    assert kind.value == 0


def test_calls_are_counted(lib, gpu, block):
    host = np.zeros(4, np.int32)
    gpu.clear_host_calls()
    lib.copy(block, host, 16, TO_DEVICE)
    lib.copy_async(block, block + 64, 16, ON_DEVICE, None)
    lib.copy_async(host, block, 16, TO_HOST, None)
    lib.fill(block, 0, 16)
    lib.run_nothing(1, 1, 1, 1, 1, 1)
    lib.device_synchronize()
    calls = gpu.host_calls()
    assert calls == {
        "cudaMemcpy": 1,
        "cudaMemcpyAsync": 2,
        "cudaMemset": 1,
        "cudaLaunchKernel": 1,
        "cudaDeviceSynchronize": 1,
    }
    assert calls.synchronising == {"cudaMemcpy": 1, "cudaMemcpyAsync": 1, "cudaDeviceSynchronize": 1}
