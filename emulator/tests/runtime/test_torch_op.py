"""A torch operator with CUDA launches, run on CPU tensors."""

from pathlib import Path

import pytest

import emulator

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def op(build_library, tmp_path_factory):
    from torch.utils import cpp_extension

    flags = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020d000000000000"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-ltorch", "-lc10"]
    source = Path(__file__).parent / "torch_op.cu"
    path = build_library(source, tmp_path_factory.mktemp("op"), flags, libraries, leave_out="-std=c++17")
    torch.ops.load_library(str(path))
    return torch.ops.emulator_test.scale_rows


def test_op(op):
    with emulator.Gpu("H100") as gpu, gpu.torch_memory():
        x, scale = torch.randn(20, 30), torch.randn(20)
        out = op(x, scale)
        assert torch.equal(out, x * scale[:, None])
        assert gpu.launches[-1].kernel == "scale_rows"
        assert gpu.host_calls().synchronising == {}


def test_op_that_reads_too_much(op):
    gpu = emulator.Gpu("H100")
    with gpu, gpu.torch_memory():
        with pytest.raises(RuntimeError, match=r"past the end of tensor #\d+"):
            op(torch.randn(20, 30), torch.randn(19))
        assert gpu.clear_fault().kind == "out_of_bounds"


def test_op_on_what_no_kernel_wrote(op):
    gpu = emulator.Gpu("H100")
    with gpu, gpu.torch_memory():
        with gpu.fresh_memory():
            scale = torch.empty(20)
        with pytest.raises(RuntimeError, match="uninitialised_global"):
            op(torch.randn(20, 30), scale)
        gpu.clear_fault()
