"""A virtual GPU: runs PTX on the CPU, strictly, and counts what it does.

gpu = emulator.Gpu("H100")
module = gpu.load("vadd.ptx")
launch = module["vadd"](grid, block, x, y, out, n)
launch.table()
"""

from emulator.fault import Fault  # isort: skip  (the native module raises it)

from emulator._core import Chip, demangle
from emulator.gpu import Gpu, HostCalls, chip, chips
from emulator.kernel import Kernel, Module
from emulator.launch import Launch
from emulator.nvcc import compile_cuda, nvcc
from emulator.tensor_map import TensorMap

__all__ = [
    "Chip",
    "Fault",
    "Gpu",
    "HostCalls",
    "Kernel",
    "Launch",
    "Module",
    "TensorMap",
    "chip",
    "chips",
    "compile_cuda",
    "demangle",
    "nvcc",
]
