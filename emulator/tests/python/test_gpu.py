"""The GPU's memory, options, records and exceptions, as Python sees them."""

import json
import pickle

import numpy as np
import pytest

import emulator

SOURCE = """
extern "C" __global__ void add(const float* x, const float* y, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    out[i] = x[i] + y[i];
}

extern "C" __global__ void hello() { printf("hello from %d\\n", threadIdx.x); }
"""


@pytest.fixture
def gpu():
    return emulator.Gpu("H100")


@pytest.fixture
def module(gpu):
    if emulator.nvcc() is None:
        pytest.skip("no nvcc")
    return gpu.load(emulator.compile_cuda("#include <cstdio>\n" + SOURCE))


def test_arrays_of_the_gpu(gpu, module):
    x, y = gpu.array(np.arange(10, dtype=np.float32)), gpu.zeros(10)
    out = gpu.empty((2, 5))
    assert np.isnan(out).all(), "poisoned"
    before = gpu.live_bytes
    module["add"](1, 32, x, y, out, 10)
    np.testing.assert_array_equal(out.ravel(), x)
    del y
    assert gpu.live_bytes == before - 40


def test_unwritten_memory_is_found(gpu, module):
    x, y, out = gpu.zeros(8), gpu.empty(8), gpu.empty(8)
    with pytest.raises(emulator.Fault) as raised:
        module["add"](1, 32, x, y, out, 8)
    assert raised.value.kind == "uninitialised_global"
    y[:] = 1
    gpu.mark_written(y)
    module["add"](1, 32, x, y, out, 8)
    gpu.mark_fresh(y)
    assert np.isnan(y).all()


def test_torch_dtypes(gpu, module):
    torch = pytest.importorskip("torch")
    tensor = gpu.zeros((4, 4), torch.bfloat16)
    assert tensor.dtype == torch.bfloat16
    copy = gpu.array(torch.arange(6).reshape(2, 3))
    assert copy.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_faults_carry_everything(module):
    x = np.zeros(32, np.float32)
    with pytest.raises(emulator.Fault) as raised:
        module["add"](2, 32, x, x, np.zeros(64, np.float32), 33)
    fault = raised.value
    assert fault.kind == "out_of_bounds"
    assert fault.kernel == "add"
    assert fault.block == (1, 0, 0)
    assert fault.thread == (0, 0, 0)
    assert fault.warp == 0
    assert fault.lane == 0
    assert fault.line == 6
    assert fault.file.endswith(".cu")
    assert fault.instruction.startswith("ld.global")
    assert fault.address == x.ctypes.data + 128
    assert str(fault).startswith("out_of_bounds: ")
    again = pickle.loads(pickle.dumps(fault))
    assert str(again) == str(fault)
    assert again.kind == fault.kind


def test_records(gpu, module):
    x = gpu.zeros(1024)
    out = gpu.empty(1024)
    launch = module["add"](4, 256, x, x, out, 1024)
    c = launch.counters
    assert c.global_requests == 3 * 32
    assert c.global_sectors == c.global_sectors_ideal == 3 * 128
    assert c.distinct_sectors_read == 128
    assert c.distinct_sectors_written == 128
    assert sum(c.instructions_by_class.values()) == c.warp_instructions
    assert [x.number for x in gpu.launches] == [launch.number]
    assert sum(x.counters.warp_instructions for x in launch.lines()) == c.warp_instructions
    busiest = max(launch.lines(), key=lambda x: x.counters.global_sectors)
    assert busiest.line == 6
    data = json.loads(launch.to_json())
    assert data["counters"]["global_sectors"] == 384
    assert data["instructions"][0]["opcode"]
    launch.table()
    gpu.clear_launches()
    assert gpu.launches == []
    module["add"](4, 256, x, x, out, 1024)
    assert len(gpu.launches) == 1


def test_without_counters(gpu, module):
    gpu.counters = False
    x = gpu.zeros(8)
    launch = module["add"](1, 8, x, x, x, 8)
    assert launch.counters.warp_instructions > 0
    assert launch.instructions() == []


def test_printing_goes_to_python(module, capsys):
    module["hello"](1, 2)
    assert sorted(capsys.readouterr().out.splitlines()) == ["hello from 0", "hello from 1"]


def test_options():
    gpu = emulator.Gpu("rtx4090", seed=3, completion="latest", accumulate="exact", checks=False, host_threads=1)
    assert (gpu.seed, gpu.completion, gpu.accumulate, gpu.checks, gpu.host_threads) == (3, "latest", "exact", False, 1)
    gpu.chip = "sm_90a"
    assert gpu.chip.name == "H100"
    with pytest.raises(ValueError, match="want random, latest, lifo or eager"):
        gpu.completion = "never"
    with pytest.raises(ValueError, match="no chip is called 'Voodoo'"):
        emulator.Gpu("Voodoo")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("h100", "H100"), ("a100 80gb", "A100-80GB"), ("sm_80", "A100"), ("sm_89", "L4"), ("sm_100a", "B200")],
)
def test_chips(name, wanted):
    assert emulator.chip(name).name == wanted


@pytest.mark.parametrize("name", ["sm_80a", "sm_70", "sm_90x", ""])
def test_unknown_chips(name):
    with pytest.raises(ValueError):
        emulator.chip(name)


def test_bad_sources(gpu, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        gpu.load("missing.ptx")
    bad = tmp_path / "bad.ptx"
    bad.write_text(".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() { mov.u32 %r1 1; }\n")
    with pytest.raises(SyntaxError, match=r"bad.ptx"):
        gpu.load(bad)
