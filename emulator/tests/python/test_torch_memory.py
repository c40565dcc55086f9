"""CPU tensors of torch in emulator memory."""

import gc

import numpy as np
import pytest

import emulator

torch = pytest.importorskip("torch")

SOURCE = """
extern "C" __global__ void add(const float* x, const float* y, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + y[i];
}
"""


@pytest.fixture
def gpu():
    return emulator.Gpu("H100")


@pytest.fixture
def add(gpu):
    if emulator.nvcc() is None:
        pytest.skip("no nvcc")
    kernel = gpu.load(emulator.compile_cuda(SOURCE))["add"]
    # By address alone, as a launcher would: nothing is added for the launch.
    return lambda x, y, out, n: kernel(1, 64, x.data_ptr(), y.data_ptr(), out.data_ptr(), n)


def test_tensors_live_in_the_gpu(gpu, add):
    before = gpu.live_bytes
    with gpu.torch_memory():
        x, y, out = torch.ones(16), torch.arange(16.0), torch.empty(16)
        assert gpu.live_bytes >= before + 3 * 64
        add(x, y, out, 16)
        assert out.tolist() == [1 + i for i in range(16)]
        with pytest.raises(emulator.Fault, match="0 bytes past the end of tensor #"):
            add(x, y, out, 17)
    outside = torch.ones(16)
    with pytest.raises(emulator.Fault, match="out_of_bounds"):
        add(outside, y, out, 16)
    del x, y, out
    gc.collect()
    assert gpu.live_bytes == before


def test_use_after_free(gpu, add):
    with gpu.torch_memory():
        x, y, out = torch.ones(16), torch.ones(16), torch.empty(16)
        freed = x.data_ptr()
        del x

        class Dangling:
            def data_ptr(self):
                return freed

        with pytest.raises(emulator.Fault) as raised:
            add(Dangling(), y, out, 16)
    assert raised.value.kind == "use_after_free"


def test_fresh_memory(gpu, add):
    with gpu.torch_memory():
        x, out = torch.ones(16), torch.empty(16)
        with gpu.fresh_memory():
            fresh = torch.empty(16)
        assert fresh.isnan().all()
        with pytest.raises(emulator.Fault) as raised:
            add(x, fresh, out, 16)
        assert raised.value.kind == "uninitialised_global"
        add(x, x, fresh, 16)
        add(x, fresh, out, 16)
    assert out.tolist() == [3] * 16


def test_tensors_outlive_the_region_and_the_gpu():
    gpu = emulator.Gpu("H100")
    with gpu.torch_memory():
        x = torch.ones(1 << 16)
    del gpu
    gc.collect()
    assert x.sum() == 1 << 16
    y = (x.reshape(256, 256) @ x.reshape(256, 256)).numpy()
    np.testing.assert_array_equal(y, 256)


def test_regions_nest(gpu):
    other = emulator.Gpu("H100")
    with gpu.torch_memory():
        with other.torch_memory():
            x = torch.ones(100)
        assert other.live_bytes == 400
        y = torch.ones(100)
        assert gpu.live_bytes == 400
    del x, y


def test_torch_works_inside(gpu):
    with gpu.torch_memory():
        layer = torch.nn.Linear(32, 16)
        loss = layer(torch.randn(8, 32)).relu().sum()
        loss.backward()
        assert layer.weight.grad is not None
        x = torch.randn(1000).sort().values.resize_(2000)
        assert x.shape == (2000,)
