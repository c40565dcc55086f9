"""Offsets past 2^31 elements, without the memory: views of a huge allocation of which only a few pages are touched."""

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support import virtual
from tests.support.backends import Backend
from tests.support.tolerance import assert_same_bits
from tests.support.truth import run_with_gradients

FAR = 2**31 + 11  # elements
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def far_apart(backend: Backend, values: Tensor, dim: int) -> Tensor:
    """The same values with a stride in ``dim`` that carries the last index past 2^31 elements."""
    near = values.select(dim, 0).contiguous()
    # A multiple of 16 bytes, as vector loads and tensor cores want it.
    stride = (FAR // (values.shape[dim] - 1) // 8 + 1) * 8
    strides = list(near.stride())
    strides.insert(dim, stride)
    elements = stride * (values.shape[dim] - 1) + near.numel()
    try:
        if backend.is_virtual:
            places = [(index * stride, near.numel()) for index in range(values.shape[dim])]
            storage = virtual.far_memory(elements, values.dtype, places)
        else:
            storage = torch.empty(elements, dtype=values.dtype, device=values.device)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no address space for {elements * values.element_size() / 2**30:.0f} GiB: {error}")
    result = storage.as_strided(values.shape, strides)
    assert result.select(dim, -1).storage_offset() > 2**31
    return result.copy_(values)


def assert_same(backend: Backend, actual: Tensor, expected: Tensor, name: str) -> None:
    """The same bits, or where another kernel may have come to it, all but the last."""
    if backend.strides_keep_bits(expected.dtype):
        assert_same_bits(actual, expected, name)
    else:
        rounding = 4 * torch.finfo(expected.dtype).eps
        assert torch.allclose(actual, expected, rtol=rounding, atol=rounding * expected.abs().max().item()), name


def experts(dtype: torch.dtype, transposed: bool) -> dict[str, Tensor]:
    shapes = {"x": (6, 40), "w_gate_up": (3, 32, 40), "w_down": (3, 40, 16), "b_gate_up": (3, 32), "b_down": (3, 40)}
    tensors = {name: (torch.randn(shape) / shape[-1] ** 0.5).to(dtype) for name, shape in shapes.items()}
    if transposed:
        tensors |= {name: tensors[name].mT.contiguous() for name in ("w_gate_up", "w_down")}
    tensors["topk_ids"] = torch.tensor([[0, 2], [1, 2], [2, 0], [2, 1], [0, 1], [-1, 2]], dtype=torch.int32)
    tensors["topk_weights"] = torch.rand(6, 2)
    return tensors


@pytest.mark.parametrize("name", ["x", "w_gate_up", "w_down", "b_gate_up", "b_down", "topk_ids", "topk_weights"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows_out", "rows_in"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_experts(backend: Backend, dtype: torch.dtype, transposed: bool, name: str) -> None:
    tensors = backend.put(experts(dtype, transposed))
    expected = run_with_gradients(moe_ext.fused_experts, tensors, transposed=transposed)
    # Between two experts, two tokens, and (matrices) two rows of one expert.
    for dim in range(tensors[name].dim() - 1):
        far = tensors | {name: far_apart(backend, tensors[name], dim)}
        for key, value in run_with_gradients(moe_ext.fused_experts, far, transposed=transposed).items():
            assert_same(backend, value, expected[key], f"{key} with dimension {dim} of {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradient(backend: Backend, dtype: torch.dtype) -> None:
    tensors = backend.put(experts(dtype, transposed=False))
    leaves = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    y = moe_ext.fused_experts(**tensors)
    upstream = torch.randn(y.shape).to(dtype).to(y)
    expected = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    for got, want in zip(torch.autograd.grad(y, leaves, far_apart(backend, upstream, 0)), expected, strict=True):
        assert_same(backend, got, want, "gradient")


@pytest.mark.parametrize("name", ["rows", "weight", "bias", "grad_out"])
@pytest.mark.parametrize("gather", [None, [3, 0, 4, 4, 1, 2]], ids=["rows", "gather"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_gemm(backend: Backend, dtype: torch.dtype, gather: list[int] | None, name: str) -> None:
    given = {
        "rows": torch.randn(6, 33), "weight": torch.randn(3, 20, 33), "bias": torch.randn(3, 20),
        "grad_out": torch.randn(6, 20),
    }  # fmt: skip
    given = backend.put({key: tensor.to(dtype) for key, tensor in given.items()})
    offsets = backend.put(torch.tensor([0, 2, 5, 6], dtype=torch.int32))
    index = None if gather is None else backend.put(torch.tensor(gather, dtype=torch.int32))

    def results(rows: Tensor, weight: Tensor, bias: Tensor, grad_out: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (rows, weight, bias)]
        out = moe_ext.grouped_gemm(leaves[0], leaves[1], offsets, bias=leaves[2], gather=index)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    expected = results(**given)
    for dim in range(given[name].dim()):
        far = given | {name: far_apart(backend, given[name], dim)}
        for got, want in zip(results(**far), expected, strict=True):
            assert_same(backend, got, want, f"dimension {dim} of {name}")


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wgrad_accumulator(backend: Backend, dtype: torch.dtype, transposed: bool, dim: int) -> None:
    rows, grad_out = backend.put((torch.randn(6, 33).to(dtype), torch.randn(6, 20).to(dtype)))
    offsets = backend.put(torch.tensor([0, 2, 5, 6], dtype=torch.int32))
    near = backend.put(torch.randn(3, 33, 20) if transposed else torch.randn(3, 20, 33))
    far = far_apart(backend, near, dim)
    for accumulator in (near, far):
        torch.ops.moe_ext.grouped_gemm_wgrad_(rows, grad_out, offsets, None, transposed, accumulator)
    assert_same(backend, far, near, "accumulator")
