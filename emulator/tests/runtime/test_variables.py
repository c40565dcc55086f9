"""__device__, __constant__ and __managed__ variables."""

import ctypes

import numpy as np

import emulator


def test_variables_live_in_the_gpu(lib):
    count = ctypes.c_int()
    for _ in range(2):  # each GPU has its own
        with emulator.Gpu("H100") as gpu:
            out = gpu.empty(32)
            assert lib.run_variables(out) == 0
            assert out[:4].tolist() == [1, 2, 3, 4]
            assert lib.read_counter(count) == 0
            assert count.value == 7 + 32
            assert lib.write_table(np.array([5, 6, 7, 8], np.float32)) == 0
            assert lib.run_variables(out) == 0
            assert out[:4].tolist() == [5, 6, 7, 8]


def test_size_of_a_symbol(lib, gpu):
    size = ctypes.c_size_t()
    assert lib.counter_size(size) == 0
    assert size.value == 4


def test_managed_variables(lib, gpu):
    out = gpu.empty(1, np.int32)
    assert lib.run_managed(out) == 0
    assert out[0] == 6
