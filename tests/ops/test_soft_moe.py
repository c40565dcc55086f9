"""soft_dispatch and soft_combine: the worked example, derivatives, masks, precision, and what backward keeps."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference

Op = Callable[..., Tensor]

LOGITS = torch.tensor([[[1.0, 0, -1], [0, 2, 1], [1, 1, 0], [2, 0, 0]]])
X = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0]]])
SLOTS = torch.tensor([[[1.462117, 0.268941], [0.472299, 0.834811], [0.662165, 0.731059]]])
Y = torch.tensor([[[1.382676, 0.784968], [1.246172, 1.671646], [1.325028, 1.159429], [1.462848, 0.623068]]])
OPS = (moe_ext.soft_dispatch, moe_ext.soft_combine)


def inputs(op: Op, dtype: torch.dtype = torch.float64, batch: int = 2, m: int = 5, s: int = 3, d: int = 4) -> tuple:
    rows = m if op is moe_ext.soft_dispatch else s
    data, logits = torch.randn(batch, rows, d, dtype=dtype), 2 * torch.randn(batch, m, s, dtype=dtype)
    return data, logits


def mask_of(batch: int, m: int) -> Tensor:
    mask = torch.ones(batch, m, dtype=torch.bool)
    mask[0, 1] = False
    mask[1, 2:] = False
    return mask


def reference_of(op: Op) -> Op:
    return getattr(reference, op.__name__)


def test_worked_example() -> None:
    slots = moe_ext.soft_dispatch(X, LOGITS)
    torch.testing.assert_close(slots, SLOTS, rtol=0, atol=1e-6)
    y = moe_ext.soft_combine(slots * torch.tensor([[[1.0], [2.0], [3.0]]]), LOGITS)
    torch.testing.assert_close(y, Y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: Op, masked: bool) -> None:
    data, logits = (tensor.requires_grad_() for tensor in inputs(op))
    mask = mask_of(2, 5) if masked else None
    assert torch.autograd.gradcheck(lambda a, b: op(a, b, mask), (data, logits))
    assert torch.autograd.gradgradcheck(lambda a, b: op(a, b, mask), (data, logits))


@given(
    which=st.sampled_from((0, 1)),
    sizes=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5)),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_against_the_reference(which: int, sizes: tuple[int, int, int, int], masked: bool, seed: int) -> None:
    op = OPS[which]
    torch.manual_seed(seed)
    data, logits = inputs(op, torch.float64, *sizes)
    mask = torch.rand(sizes[:2]) > 0.3 if masked else None
    if mask is not None and op is moe_ext.soft_dispatch:
        mask[:, 0] = True
    leaves = [tensor.requires_grad_() for tensor in (data, logits)]
    actual, expected = op(*leaves, mask), reference_of(op)(*leaves, mask)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(actual)
    for one, other in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_sum_to_one() -> None:
    _, logits = inputs(moe_ext.soft_dispatch, torch.float32)
    mask = mask_of(2, 5)
    ones = torch.ones(2, 5, 1)
    torch.testing.assert_close(moe_ext.soft_dispatch(ones, logits), torch.ones(2, 3, 1))
    torch.testing.assert_close(moe_ext.soft_dispatch(ones, logits, mask), torch.ones(2, 3, 1))
    torch.testing.assert_close(moe_ext.soft_combine(ones[:, :3], logits), ones)
    torch.testing.assert_close(moe_ext.soft_combine(ones[:, :3], logits, mask), mask.unsqueeze(2).float())


def test_the_order_of_tokens_does_not_matter() -> None:
    x, logits = inputs(moe_ext.soft_dispatch)
    order = torch.randperm(5)
    slots = moe_ext.soft_dispatch(x, logits)
    torch.testing.assert_close(moe_ext.soft_dispatch(x[:, order], logits[:, order]), slots)
    y = moe_ext.soft_combine(slots, logits)
    torch.testing.assert_close(moe_ext.soft_combine(slots, logits[:, order]), y[:, order])


def test_masked_tokens_are_as_if_they_were_not_there() -> None:
    x, logits = (tensor.requires_grad_() for tensor in inputs(moe_ext.soft_dispatch))
    mask = mask_of(2, 5)
    slots = moe_ext.soft_dispatch(x, logits, mask)
    short = moe_ext.soft_dispatch(x[1:, :2], logits[1:, :2])
    torch.testing.assert_close(slots[1:], short)
    y = moe_ext.soft_combine(slots, logits, mask)
    torch.testing.assert_close(y[1:, :2], moe_ext.soft_combine(short, logits[1:, :2]))
    assert not y[~mask].any()
    for grad in torch.autograd.grad(y.square().sum(), (x, logits)):
        assert not grad[~mask].any()
        assert grad[mask].all()


@pytest.mark.parametrize("op", OPS)
def test_a_sequence_of_padding_only(op: Op) -> None:
    data, logits = (tensor.requires_grad_() for tensor in inputs(op))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    out = op(data, logits, mask)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (data, logits)):
        assert not grad.any()


@pytest.mark.parametrize("op", OPS)
def test_extreme_logits(op: Op) -> None:
    data, _ = inputs(op, torch.float32)
    logits = torch.zeros(2, 5, 3)
    logits[:, 0] = 1e38
    assert op(data, logits).isfinite().all()


@pytest.mark.parametrize("op", OPS)
def test_backward_keeps_its_inputs_and_nothing_else(op: Op) -> None:
    data, logits = (tensor.requires_grad_() for tensor in inputs(op, torch.float32))
    mask = mask_of(2, 5)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        op(data, logits, mask)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in (data, logits, mask)}
    assert len(kept) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_dtypes(op: Op, dtype: torch.dtype) -> None:
    data, logits = inputs(op, torch.float64, 2, 65, 33, 16)
    data = data.to(dtype)
    result = op(data.requires_grad_(), logits.float().requires_grad_())
    assert result.dtype == dtype
    truth = reference_of(op)(data.detach().double(), logits.float().double())
    # Weights and result are rounded to the dtype; a difference of logits, up to 16 here, to float32 at least, and what
    # that rounds off is relative to the weight.
    error, scale = (result.detach().double() - truth).abs().max(), truth.abs().max()
    assert error < (4 * torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps) * scale
    result.sum().backward()
    assert data.grad is not None
    assert data.grad.dtype == dtype


def test_autocast_lowers_the_data_and_not_the_logits() -> None:
    x, logits = inputs(moe_ext.soft_dispatch, torch.float32, 2, 64, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slots = moe_ext.soft_dispatch(x, logits)
        y = moe_ext.soft_combine(slots, logits)
    assert slots.dtype == y.dtype == torch.bfloat16
    assert torch.equal(slots, moe_ext.soft_dispatch(x.bfloat16(), logits))
    assert torch.equal(y, moe_ext.soft_combine(slots, logits))


def test_compiled_and_transformed() -> None:
    x, logits = inputs(moe_ext.soft_dispatch)

    def both(x: Tensor, logits: Tensor) -> Tensor:
        return moe_ext.soft_combine(moe_ext.soft_dispatch(x, logits), logits).square().sum()

    expected = torch.func.grad(both, argnums=(0, 1))(x, logits)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, logits)]
    actual = torch.autograd.grad(torch.compile(both, fullgraph=True)(*leaves), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    mapped = torch.func.vmap(both)(x.unsqueeze(1), logits.unsqueeze(1))
    torch.testing.assert_close(mapped.sum(), both(x, logits))


def test_compiled_code_keeps_no_softmax() -> None:
    x, logits = (tensor.requires_grad_() for tensor in inputs(moe_ext.soft_dispatch, torch.float32))

    @torch.compile(fullgraph=True)
    def both(x: Tensor, logits: Tensor) -> Tensor:
        return moe_ext.soft_combine(moe_ext.soft_dispatch(x, logits), logits)

    kept = both(x, logits).grad_fn.saved_tensors  # type: ignore[union-attr]
    assert {tensor.data_ptr() for tensor in kept if tensor.shape == logits.shape} == {logits.data_ptr()}
