"""float32 and float16 products on every instruction set: as exact as float32 sums, whatever route a CPU offers.

AMX multiplies bfloat16 only, so there a float32 is a sum of three and a float16 of two (csrc/cpu/amx/split.h). What
could go wrong with that are long sums, sums that cancel, numbers of very different size, and numbers whose parts are
not finite or vanish.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import moe_ext
from tests.support.tolerance import assert_close_to_truth, assert_same_bits

DTYPES = (torch.float32, torch.float16)
FEW, MANY = 5, 70  # rows: where weights are streamed, and where they are packed


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def cancelling(rows: int, k: int) -> Tensor:
    """Every number has its negative near by, but for one part in a thousand."""
    half = normal(rows, k // 2)
    order = torch.randperm(k // 2)
    pairs = torch.cat([half, -half[:, order] * (1 + 1e-3 * normal(rows, k // 2))], 1)
    return torch.cat([pairs, normal(rows, k % 2)], 1)


def of_every_size(rows: int, k: int) -> Tensor:
    return normal(rows, k) * torch.exp2(torch.randint(-18, 4, (rows, k)).double())


INPUTS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": normal, "cancelling": cancelling, "of_every_size": of_every_size
}  # fmt: skip


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [R,k] times weight [n,k]."""
    offsets = torch.tensor([0, len(rows)], dtype=torch.int32)
    return moe_ext.grouped_gemm(rows, weight[None], offsets)


def weight_gradient(rows: Tensor, grad_out: Tensor) -> Tensor:
    """grad_out [R,n] transposed times rows [R,c]: the sum runs over R."""
    weight = torch.zeros(1, grad_out.shape[1], rows.shape[1], dtype=rows.dtype, requires_grad=True)
    offsets = torch.tensor([0, len(rows)], dtype=torch.int32)
    (grad,) = torch.autograd.grad(moe_ext.grouped_gemm(rows, weight, offsets), weight, grad_out)
    return grad[0]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("k", [64, 1000, 8192])
@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_close_to_float64(cpu_isa: str, dtype: torch.dtype, rows: int, k: int, kind: str) -> None:
    x = (INPUTS[kind](rows, k) / k**0.5).to(dtype)
    weight = INPUTS[kind](48, k).to(dtype)
    truth = x.double() @ weight.double().mT
    assert_close_to_truth(multiply(x, weight), truth, x @ weight.mT, "product")
    gradient = weight_gradient(x.mT.contiguous(), weight.mT.contiguous())
    assert_close_to_truth(gradient, truth.mT, weight @ x.mT, "weight gradient")


@pytest.mark.parametrize("k", [64, 1000, 8192])
def test_float32_error_of_each_element(cpu_isa: str, k: int) -> None:
    """Relative to what was added up, about that of one chain of fused multiply-adds: no element drowns in others."""
    x, weight = of_every_size(MANY, k).float(), of_every_size(48, k).float()
    truth, size = x.double() @ weight.double().mT, x.double().abs() @ weight.double().abs().mT
    error = (multiply(x, weight).double() - truth).abs() / size
    chain = torch.zeros(MANY, 48)
    for kk in range(k):
        chain = torch.addcmul(chain.double(), x[:, kk, None].double(), weight[None, :, kk].double()).float()
    assert error.max() < 2 * ((chain.double() - truth).abs() / size).max()


def test_products_of_float16_are_exact(cpu_isa: str) -> None:
    x, weight = torch.randn(MANY, 64).half(), torch.zeros(48, 64).half()
    weight[torch.arange(48), torch.arange(48)] = torch.randn(48).half()
    expected = (x[:, :48].double() * weight.diagonal().double()).half()
    assert_same_bits(multiply(x, weight), expected, "one product")


def test_tiny_numbers(cpu_isa: str) -> None:
    """Nothing is lost above 2^-126; AMX takes what is below for zero."""
    x, weight = torch.randn(MANY, 256) * 2.0**-120, torch.randn(48, 256)
    truth = x.double() @ weight.double().mT
    lost = 256 * 2.0**-126 * weight.abs().max().item() if cpu_isa == "amx" else 0.0
    error = (multiply(x, weight).double() - truth).abs().max()
    assert error < lost + 2**-20 * truth.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [FEW, MANY])
def test_numbers_that_are_not_finite(cpu_isa: str, rows: int, dtype: torch.dtype) -> None:
    """They come out as IEEE 754 wants, in their row or column and nowhere else."""
    inf, nan, largest = float("inf"), float("nan"), torch.finfo(dtype).max
    clean, weight = torch.randn(rows, 100).to(dtype), (torch.randn(48, 100) / 10).to(dtype)
    before = multiply(clean, weight)
    x = clean.clone()
    x[1, 3], x[2, 50], x[3, 99], x[4, 7] = inf, nan, -inf, largest
    x[4, 8:] = 0
    actual, expected = multiply(x, weight), x.double() @ weight.double().mT
    for row in (1, 2, 3):
        torch.testing.assert_close(actual[row].double(), expected[row], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(actual[4].double(), expected[4], rtol=torch.finfo(dtype).eps, atol=0)
    untouched = [row for row in range(rows) if row not in (1, 2, 3, 4)]
    assert_same_bits(actual[untouched], before[untouched], "other rows")

    weight[5, 2], weight[6, 2] = inf, nan
    actual, expected = multiply(clean, weight), clean.double() @ weight.double().mT
    torch.testing.assert_close(actual[:, 5:7].double(), expected[:, 5:7], rtol=0, atol=0, equal_nan=True)
    rest = [*range(5), *range(7, 48)]
    assert_same_bits(actual[:, rest], before[:, rest], "other columns")

    grad_out = torch.randn(rows, 48).to(dtype)
    gradient, truth = weight_gradient(x, grad_out), grad_out.double().mT @ x.double()
    for column in (3, 50, 99):
        torch.testing.assert_close(gradient[:, column].double(), truth[:, column], rtol=0, atol=0, equal_nan=True)


def test_sums_that_overflow(cpu_isa: str) -> None:
    x = torch.full((MANY, 64), 2.0**100)
    assert (multiply(x, torch.full((48, 64), 2.0**100)) == float("inf")).all()
    assert (multiply(x, torch.full((48, 64), -(2.0**100))) == float("-inf")).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_any_number_of_rows_has_the_same_bits(cpu_isa: str, dtype: torch.dtype, transposed: bool) -> None:
    x, weight = torch.randn(40, 900).to(dtype), torch.randn(1, 70, 900).to(dtype)
    weight = weight.mT.contiguous() if transposed else weight
    offsets = torch.tensor([0, 40], dtype=torch.int32)
    whole = moe_ext.grouped_gemm(x, weight, offsets, transposed=transposed)
    for rows in range(1, 40):
        offsets = torch.tensor([0, rows], dtype=torch.int32)
        part = moe_ext.grouped_gemm(x[:rows], weight, offsets, transposed=transposed)
        assert_same_bits(part, whole[:rows], f"{rows} rows")
