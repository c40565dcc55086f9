"""soft_dispatch and soft_combine on every backend: the truth, the worked example, derivatives, masks, what is not
finite, and what backward keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.inputs import strided_variants
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth, run_on

Op = Callable[..., Tensor]
raw = torch.ops.moe_ext

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INF, NAN = float("inf"), float("nan")
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


def run(backend: Backend, op: Op, *args: Tensor | None) -> Tensor:
    """On the backend; the result is on the CPU."""
    return op(*backend.put(args)).cpu()


class Plain(torch.autograd.Function):
    """As one would write it with matrix products of PyTorch: weights are rounded to the dtype of the data, and the
    gradient of the logits goes by the result as it was rounded, as moe/soft.h has it."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, logits: Tensor, token_mask: Tensor | None, dispatch: bool) -> Tensor:
        wide = logits.to(torch.float64 if data.dtype == torch.float64 else torch.float32)
        hidden = torch.zeros(logits.shape[:2], dtype=torch.bool) if token_mask is None else ~token_mask
        if dispatch:
            wide = wide.masked_fill(hidden[..., None], -INF)
        weights = wide.softmax(1 if dispatch else 2).masked_fill(hidden[..., None], 0)
        of_results = weights.mT if dispatch else weights
        result = of_results.to(data.dtype) @ data
        ctx.save_for_backward(data, of_results, result)
        ctx.options = logits.dtype, dispatch
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        data, weights, result = ctx.saved_tensors
        logits_dtype, dispatch = ctx.options
        wide = weights.dtype
        delta = (grad.to(wide) * result.to(wide)).sum(2, keepdim=True)
        grad_logits = (weights * ((grad @ data.mT).to(wide) - delta)).to(logits_dtype)
        return weights.to(data.dtype).mT @ grad, grad_logits.mT if dispatch else grad_logits, None, None


def plain(op: Op) -> Op:
    return lambda data, logits, token_mask=None: Plain.apply(data, logits, token_mask, op is moe_ext.soft_dispatch)


def check(backend: Backend, op: Op, sizes: tuple[int, ...], dtype: torch.dtype, **options: Any) -> None:
    """Values and gradients against the truth; logits_dtype, masked."""
    logits_dtype = options.get("logits_dtype", torch.float32)

    def draw(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        data, logits = inputs(op, torch.float32, *sizes)
        tensors = {"data": data.to(dtype), "logits": logits.to(logits_dtype)}
        if options.get("masked"):
            tensors["token_mask"] = torch.rand(sizes[:2]) > 0.4
            tensors["token_mask"][0] = False
        return tensors

    def ours(data: Tensor, logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return op(data, logits, token_mask)

    check_against_truth(ours, plain(op), draw, backend=backend)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [(2, 40, 24, 16), (3, 65, 33, 17), (1, 70, 130, 72), (2, 1, 5, 9), (2, 9, 1, 8), (1, 5, 3, 1)], ids=str
)
@pytest.mark.parametrize("op", OPS)
def test_sizes(backend: Backend, op: Op, sizes: tuple[int, ...], dtype: torch.dtype, masked: bool) -> None:
    check(backend, op, sizes, dtype, masked=masked)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [(2, 600, 310, 70), (1, 2100, 40, 33), (1, 72, 1100, 300), (1, 33, 4200, 24)], ids=str
)
@pytest.mark.parametrize("op", OPS)
def test_blocks(backend: Backend, op: Op, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Larger than what is worked on at once."""
    check(backend, op, sizes, dtype)


@pytest.mark.parametrize("logits_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_logits_of_16_bits(backend: Backend, op: Op, dtype: torch.dtype, logits_dtype: torch.dtype) -> None:
    check(backend, op, (2, 70, 300 if backend.is_cpu else 40, 24), dtype, logits_dtype=logits_dtype, masked=True)


@pytest.mark.parametrize(("dtype", "logits_dtype"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("op", OPS)
def test_logits_of_another_width(backend: Backend, op: Op, dtype: torch.dtype, logits_dtype: torch.dtype) -> None:
    check(backend, op, (2, 30, 20, 24), dtype, logits_dtype=logits_dtype)


@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_sizes_of_zero(backend: Backend, op: Op, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    data, logits = inputs(op, dtype, *sizes)
    results = run_on(backend, op, {op_name(op): data, "logits": logits})
    batch, m, s, d = sizes
    assert results["output"].shape == (batch, s if op is moe_ext.soft_dispatch else m, d)
    assert not any(result.any() for result in results.values())
    assert results["grad_logits"].shape == logits.shape


def op_name(op: Op) -> str:
    return "x" if op is moe_ext.soft_dispatch else "slot_outputs"


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_strides(backend: Backend, op: Op, dtype: torch.dtype, which: int) -> None:
    tensors = [tensor.to(dtype) for tensor in inputs(op, torch.float32, 2, 19, 12, 16)]
    names = (op_name(op), "logits")
    expected = run_on(backend, op, dict(zip(names, tensors, strict=True)))
    for variant, tensor in strided_variants(tensors[which]):
        changed = {**dict(zip(names, tensors, strict=True)), names[which]: tensor}
        for name, result in run_on(backend, op, changed).items():
            if backend.strides_keep_bits(dtype):
                assert_same_bits(result, expected[name], f"{variant}: {name}")
            else:
                torch.testing.assert_close(result, expected[name], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_of_any_strides(backend: Backend, op: Op) -> None:
    data, logits = backend.put(tuple(tensor.requires_grad_() for tensor in inputs(op, torch.float32)))
    out = op(data, logits)
    for upstream in (torch.randn(1, 1, 1).expand(out.shape), torch.randn(out.mT.shape).mT):
        grads = [
            torch.autograd.grad(out, (data, logits), backend.put(g), retain_graph=True)
            for g in (upstream, upstream + 0)
        ]
        for one, other in zip(*grads, strict=True):
            assert_same_bits(one, other, "grad")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_sequence_is_the_same_alone(backend: Backend, op: Op, dtype: torch.dtype) -> None:
    sizes = (5, 130, 90, 40) if backend.is_cpu else (3, 20, 12, 16)
    data, logits = inputs(op, torch.float32, *sizes)
    data, logits = data.to(dtype), logits.to(dtype)
    together, alone = run(backend, op, data, logits), run(backend, op, data[2:3], logits[2:3])
    assert_same_bits(alone, together[2:3], "output")


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_logit_that_is_not_finite(backend: Backend, op: Op, dtype: torch.dtype, bad: float) -> None:
    data, logits = inputs(op, dtype, 2, 20, 18, 8)
    logits[1, 3, 4] = bad
    logits[0, 2, 5] = -INF  # a weight of zero like any other
    out = run(backend, op, data, logits)
    nan = torch.zeros(out.shape[:2], dtype=torch.bool)
    nan[1, 4 if op is moe_ext.soft_dispatch else 3] = True
    assert out[nan].isnan().all()
    assert out[~nan].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_minus_infinity_alone(backend: Backend, dtype: torch.dtype) -> None:
    """As in torch.softmax: not a number. Unless all of it is masked."""
    for op in OPS:
        data, logits = inputs(op, dtype, 2, 20, 18, 8)
        if op is moe_ext.soft_dispatch:
            logits[1, :, 4] = -INF
            nan = (torch.arange(36) == 18 + 4).view(2, 18)
        else:
            logits[1, 4] = -INF
            nan = (torch.arange(40) == 20 + 4).view(2, 20)
        out = run(backend, op, data, logits)
        assert torch.equal(out.isnan().any(2), nan)
        assert torch.equal(out.isnan().all(2), nan)
        assert not run(backend, op, data, logits, torch.zeros(2, 20, dtype=torch.bool)).any()


@pytest.mark.parametrize("op", OPS)
def test_logits_of_masked_tokens_may_be_anything(backend: Backend, op: Op) -> None:
    data, logits = inputs(op, torch.float32, 2, 20, 18, 8)
    mask = torch.rand(2, 20) > 0.5
    tensors = {op_name(op): data, "logits": logits, "token_mask": mask}
    expected = run_on(backend, op, tensors)
    for value in (NAN, INF, -INF, 1e38):
        spoiled = logits.masked_fill(~mask[..., None], value)
        for name, result in run_on(backend, op, {**tensors, "logits": spoiled}).items():
            assert_same_bits(result, expected[name], name)


@pytest.mark.parametrize("op", OPS)
def test_large_logits_lose_nothing(backend: Backend, op: Op) -> None:
    """Weights are made of differences of logits: 1000 more everywhere changes nothing but the bits below them."""
    data, _ = inputs(op, torch.float32, 2, 20, 18, 8)
    logits = torch.randint(-64, 64, (2, 20, 18)) / 16.0
    assert_same_bits(run(backend, op, data, logits + 4096), run(backend, op, data, logits), "out")


@pytest.mark.parametrize("op", OPS)
def test_only_what_is_wanted_is_computed(backend: Backend, op: Op) -> None:
    data, logits = backend.put(inputs(op, torch.float32))
    mixed, statistics = raw.soft_mix(data, logits, None, op is moe_ext.soft_dispatch)
    arguments = (torch.ones_like(mixed), data, logits, None, mixed, statistics, op is moe_ext.soft_dispatch)
    both = raw.soft_mix_backward(*arguments, True, True)
    values, nothing = raw.soft_mix_backward(*arguments, True, False)
    assert_same_bits(values, both[0], "values")
    assert nothing.shape == (0,)
    nothing, of_logits = raw.soft_mix_backward(*arguments, False, True)
    assert_same_bits(of_logits, both[1], "logits")
    assert nothing.shape == (0,)


def test_wrong_raw_arguments_are_errors(backend: Backend) -> None:
    data, logits = backend.put((torch.randn(2, 5, 4), torch.randn(2, 5, 3)))
    mask = backend.put(torch.ones(2, 5, dtype=torch.bool))
    mixed, statistics = raw.soft_mix(data, logits, mask, True)
    for call, message in (
        (lambda: raw.soft_mix(data[0], logits, None, True), r"values must be \[B, N, D\]"),
        (lambda: raw.soft_mix(data, logits, None, False), "values must have s = 3"),
        (lambda: raw.soft_mix(data, logits.double(), None, True), "logits must be Double where values are"),
        (lambda: raw.soft_mix(data, logits, mask[:, 1:], True), "token_mask must have m = 5"),
        (lambda: raw.soft_mix(data, logits, mask.int(), True), "token_mask must be Bool"),
        (
            lambda: raw.soft_mix_backward(data, data, logits, None, mixed, statistics, True, True, True),
            "grad_mixed must have s = 3",
        ),
        (
            lambda: raw.soft_mix_backward(mixed, data, logits, None, mixed, statistics[:1], True, True, True),
            "statistics must have max and scale = 2",
        ),
    ):
        with pytest.raises(RuntimeError, match=rf"moe_ext::soft_mix.*: {message}"):
            call()


def test_worked_example(backend: Backend) -> None:
    slots = run(backend, moe_ext.soft_dispatch, X, LOGITS)
    torch.testing.assert_close(slots, SLOTS, rtol=0, atol=1e-6)
    y = run(backend, moe_ext.soft_combine, slots * torch.tensor([[[1.0], [2.0], [3.0]]]), LOGITS)
    torch.testing.assert_close(y, Y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(backend: Backend, op: Op, masked: bool) -> None:
    leaves = backend.put(tuple(tensor.requires_grad_() for tensor in inputs(op)))
    mask = backend.put(mask_of(2, 5)) if masked else None
    for checked in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert checked(lambda a, b: op(a, b, mask), leaves, fast_mode=backend.is_virtual)


@pytest.mark.parametrize("op", OPS)
def test_third_derivatives(op: Op) -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in inputs(op, torch.float64, 1, 3, 2, 2))

    def penalty(data: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(op(data, logits).square().sum(), (data, logits), create_graph=True)

    assert torch.autograd.gradgradcheck(penalty, leaves)


@given(
    which=st.sampled_from((0, 1)),
    sizes=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5)),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_against_the_reference(
    backend: Backend, which: int, sizes: tuple[int, int, int, int], masked: bool, seed: int
) -> None:
    if not backend.takes(seed):
        return
    op = OPS[which]
    torch.manual_seed(seed)
    data, logits = inputs(op, torch.float64, *sizes)
    mask = torch.rand(sizes[:2]) > 0.3 if masked else None
    if mask is not None and op is moe_ext.soft_dispatch:
        mask[:, 0] = True
    tensors = {op_name(op): data, "logits": logits} | ({} if mask is None else {"token_mask": mask})
    expected = run_on(None, reference_of(op), tensors)
    for name, result in run_on(backend, op, tensors).items():
        torch.testing.assert_close(result, expected[name])


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
def test_extreme_logits(backend: Backend, op: Op) -> None:
    data, _ = inputs(op, torch.float32)
    logits = torch.zeros(2, 5, 3)
    logits[:, 0] = 1e38
    assert run(backend, op, data, logits).isfinite().all()


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
