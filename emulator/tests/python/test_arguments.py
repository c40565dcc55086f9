"""How Python values become kernel parameters."""

import numpy as np
import pytest

import emulator

SOURCE = """
struct Three { short s; float f; char c; };

extern "C" __global__ void scalars(double* out, int i, unsigned u, long long l, float f, double d, bool b, char c) {
  out[0] = i; out[1] = u; out[2] = l; out[3] = f; out[4] = d; out[5] = b; out[6] = c;
}

extern "C" __global__ void by_value(double* out, Three t) { out[0] = t.s; out[1] = t.f; out[2] = t.c; }

extern "C" __global__ void copy(const unsigned short* in, unsigned short* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];
}

extern "C" __global__ void is_null(const int* p, int* out) { *out = p == nullptr; }

struct Pointers { int* a; int* b; };
extern "C" __global__ void indirect(Pointers p) { *p.b = *p.a; }

template <typename T, int N> __global__ void typed(T* out) { *out = N; }
template __global__ void typed<int, 1>(int*);
template __global__ void typed<int, 2>(int*);
template __global__ void typed<float, 1>(float*);
"""


@pytest.fixture(scope="module")
def module():
    if emulator.nvcc() is None:
        pytest.skip("no nvcc")
    return emulator.Gpu("H100").load(emulator.compile_cuda(SOURCE))


def test_scalars(module):
    out = np.zeros(7)
    module["scalars"](1, 1, out, -5, 1 << 31, -(1 << 40), 0.5, 0.1, True, -3)
    assert out.tolist() == [-5, 1 << 31, -(1 << 40), 0.5, 0.1, 1, -3]


def test_numpy_scalars_keep_their_bytes(module):
    out = np.zeros(7)
    module["scalars"](
        1, 1, out, np.int32(-5), np.uint32(7), np.int32(-1), np.float32(0.25), np.float64(2), np.True_, np.int8(4)
    )
    assert out.tolist() == [-5, 7, -1, 0.25, 2, 1, 4]


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (1, 1 << 32, ValueError, "does not fit in 32 bits"),
        (1, 1.5, TypeError, "float for an integer"),
        (4, np.float64(1), TypeError, "has 8 bytes"),
        (4, np.int32(1), TypeError, "for a floating-point parameter"),
        (1, np.zeros(3), TypeError, "an array for a parameter that is no pointer"),
        (1, None, TypeError, "None is a null pointer"),
        (0, 1 << 64, ValueError, "does not fit in 64 bits"),
        (0, "text", TypeError, "str for an integer or pointer"),
    ],
)
def test_wrong_values(module, position, value, error, message):
    arguments = [np.zeros(7), 1, 1, 1, 1.0, 1.0, True, 1]
    arguments[position] = value
    with pytest.raises(error, match=message) as raised:
        module["scalars"](1, 1, *arguments)
    assert f"argument {position} (" in str(raised.value)


def test_wrong_number_of_arguments(module):
    with pytest.raises(TypeError, match="1 arguments for 8 parameters"):
        module["scalars"](1, 1, np.zeros(7))


def test_structs_are_bytes(module):
    three = np.zeros(
        (), np.dtype({"names": ["s", "f", "c"], "formats": ["i2", "f4", "i1"], "offsets": [0, 4, 8], "itemsize": 12})
    )
    three["s"], three["f"], three["c"] = -2, 1.5, 9
    out = np.zeros(3)
    for value in (three.tobytes(), three[()]):
        module["by_value"](1, 1, out, value)
        assert out.tolist() == [-2, 1.5, 9]
    with pytest.raises(ValueError, match="11 bytes for a parameter of 12"):
        module["by_value"](1, 1, out, bytes(11))


def test_null_pointer(module):
    out = np.zeros(1, np.int32)
    module["is_null"](1, 1, None, out)
    assert out[0] == 1


def test_views_and_read_only_arrays(module):
    base = np.arange(100, dtype=np.uint16)
    out = np.zeros(100, np.uint16)
    module["copy"](1, 128, base[10:20], out[50:60], 10)
    assert out[50:60].tolist() == list(range(10, 20))
    with pytest.raises(emulator.Fault, match="out_of_bounds"):
        module["copy"](1, 128, base[10:20], out, 11)
    frozen = base.copy()
    frozen.flags.writeable = False
    module["copy"](1, 128, frozen, out, 100)
    with pytest.raises(emulator.Fault):
        module["copy"](1, 128, base, frozen, 100)


def test_one_array_twice(module):
    data = np.arange(64, dtype=np.uint16)
    module["copy"](1, 32, data[:32], data[32:], 32)
    module["copy"](1, 32, data, data, 32)
    assert data.tolist() == list(range(32)) * 2


def test_memory_is_forgotten_after_the_launch(module):
    data = np.zeros(64, np.uint16)
    module["copy"](1, 32, data, data, 32)
    with pytest.raises(emulator.Fault, match="out_of_bounds"):
        module["copy"](1, 32, data.ctypes.data, data.ctypes.data, 32)


def test_reachable_memory(module):
    a, b = np.array([5], np.int32), np.zeros(1, np.int32)
    pointers = np.array([a.ctypes.data, b.ctypes.data], np.uint64).tobytes()
    with pytest.raises(emulator.Fault, match="out_of_bounds"):
        module["indirect"](1, 1, pointers)
    module["indirect"](1, 1, pointers, reachable=[a, b])
    assert b[0] == 5


def test_torch_tensors(module):
    torch = pytest.importorskip("torch")
    source = torch.randn(100).to(torch.bfloat16)
    out = torch.zeros(100, dtype=torch.bfloat16)
    module["copy"](1, 128, source, out, 100)
    assert torch.equal(source, out)
    with pytest.raises(emulator.Fault, match="out_of_bounds"):
        module["copy"](1, 128, source, out[:50], 51)


def test_names(module):
    assert module["typed<float, 1>"].name.startswith("_Z5typedIf")
    assert module["copy"].demangled == "copy"
    assert "by_val" in module
    with pytest.raises(KeyError, match="fits 3 kernels"):
        module["typed"]
    with pytest.raises(KeyError, match="there are: "):
        module["missing"]
