"""grouped_gemm and its weight gradients against the float64 truth, on every backend."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from tests.support.backends import Backend
from tests.support.cases import CASES, SMALL_CASES, Case, Shape, balanced, case, exact_counts, one_expert, sentinels
from tests.support.inputs import strided_variants
from tests.support.known_truth import check_with_known_truth, forget
from tests.support.tolerance import assert_close_to_truth, assert_same_bits
from tests.support.truth import check_against_truth, run_on

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
raw = torch.ops.moe_ext

# Past every block size of a kernel: rows of one expert (288), k (1024 and 512), columns (a super block of 256).
BLOCKED = (
    Case("rows_cut", Shape(700, 40, 70, 1, 1), one_expert),
    Case("rows_at_the_cut", Shape(864, 24, 33, 3, 1), exact_counts((287, 288, 289))),
    Case("k_blocked", Shape(90, 1056, 50, 3, 1), balanced),
    Case("k_just_past_a_block", Shape(20, 1025, 24, 1, 1), one_expert),
    Case("k_twice_blocked_odd", Shape(33, 2061, 21, 2, 1), balanced),
    Case("columns_blocked", Shape(50, 36, 777, 2, 1), balanced),
    Case("rows_and_k", Shape(600, 1100, 34, 1, 1), one_expert),
    # For kernels that need multiples of 16 bytes: several tiles of rows and columns, many steps along k.
    Case("aligned_tiles", Shape(300, 72, 264, 2, 1), balanced),
    Case("aligned_steps", Shape(40, 1096, 136, 3, 1), sentinels),
    Case("aligned_counts", Shape(226, 64, 48, 6, 1), exact_counts((0, 1, 31, 32, 33, 129))),
)


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan() -> Iterator[None]:
    """torch.empty is filled with NaN, so that a result which no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def _truths_of_this_module() -> Iterator[None]:
    yield
    forget()


@dataclass(frozen=True)
class Product:
    """The arguments of grouped_gemm. Rows that no expert owns are NaN where unread."""

    case: Case
    dtype: torch.dtype
    bias: bool = False
    transposed: bool = False
    gather: bool = False

    @property
    def options(self) -> dict[str, bool]:
        return {"transposed": self.transposed}

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        shape, generator = self.case.shape, torch.Generator().manual_seed(seed)
        num_experts, in_features, out_features = shape.num_experts, shape.hidden_size, shape.intermediate_size
        offsets, row_to_slot, _ = reference.permute(self.case.topk_ids(seed), num_experts)
        num_rows = shape.num_tokens if self.gather else row_to_slot.numel()
        rows = torch.randn(num_rows, in_features, generator=generator)
        if not self.gather:
            rows[int(offsets[-1]) :] = float("nan")
        weight = torch.randn(num_experts, out_features, in_features, generator=generator) / in_features**0.5
        tensors = {
            "rows": rows.to(self.dtype),
            "weight": (weight.mT.contiguous() if self.transposed else weight).to(self.dtype),
            "expert_offsets": offsets.to(torch.int32),
        }
        if self.bias:
            tensors["bias"] = torch.randn(num_experts, out_features, generator=generator).to(self.dtype)
        if self.gather:
            tensors["gather"] = torch.where(row_to_slot < 0, -7, row_to_slot // shape.top_k).to(torch.int32)
        return tensors


def check(backend: Backend, tensors: dict[str, Tensor], **options: bool) -> None:
    check_against_truth(moe_ext.grouped_gemm, reference.grouped_gemm, tensors, backend=backend, **options)


@pytest.mark.parametrize(("transposed", "gather"), [(False, False), (True, True)], ids=["n_c-rows", "c_n-gather"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, dtype: torch.dtype, transposed: bool, gather: bool) -> None:
    product = Product(case, dtype, bias=True, transposed=transposed, gather=gather)
    check_with_known_truth(backend, moe_ext.grouped_gemm, reference.grouped_gemm, product)


@pytest.mark.parametrize(("transposed", "gather"), [(True, False), (False, True)], ids=["c_n-rows", "n_c-gather"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BLOCKED, ids=str)
def test_blocks(backend: Backend, case: Case, dtype: torch.dtype, transposed: bool, gather: bool) -> None:
    product = Product(case, dtype, transposed=transposed, gather=gather)
    check_with_known_truth(backend, moe_ext.grouped_gemm, reference.grouped_gemm, product)


@pytest.mark.parametrize("aligned", [False, True], ids=["odd", "aligned"])
@pytest.mark.parametrize("gather", [False, True], ids=["rows", "gather"])
@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(backend: Backend, dtype: torch.dtype, transposed: bool, gather: bool, aligned: bool) -> None:
    """With NaN in the gaps. The contiguous tensors give the same bits: strides change the way, not the sums. But where
    tensor cores serve those alone (``aligned``), only the truth is the same."""
    shape = Shape(300, 48, 40, 15, 2) if aligned else Shape(300, 45, 37, 15, 2)
    product = Product(Case("", shape, sentinels), dtype, True, transposed, gather)
    check_with_known_truth(backend, moe_ext.grouped_gemm, reference.grouped_gemm, product)
    tensors = product.tensors()
    expected = run_on(backend, moe_ext.grouped_gemm, tensors, transposed=transposed)
    for name in ("rows", "weight", "bias"):
        for variant, strided in strided_variants(tensors[name]):
            given = tensors | {name: strided}
            if aligned and not backend.strides_keep_bits(dtype):
                check(backend, given, transposed=transposed)
                continue
            for key, result in run_on(backend, moe_ext.grouped_gemm, given, transposed=transposed).items():
                assert_same_bits(result, expected[key], f"{key} with {variant} {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded(backend: Backend, dtype: torch.dtype) -> None:
    """Stride 0: one matrix for all experts, one row for all rows, one number for a whole bias."""
    tensors = Product(Case("", Shape(120, 50, 40, 4, 2), balanced), dtype, bias=True).tensors()
    check(backend, tensors | {"weight": tensors["weight"][:1].expand(4, -1, -1)})
    check(backend, tensors | {"weight": tensors["weight"][..., :1].expand(-1, -1, 50)})
    check(backend, tensors | {"weight": tensors["weight"][:, :1].expand(-1, 40, -1)})
    check(backend, tensors | {"rows": tensors["rows"][:1].expand(240, -1)})
    check(backend, tensors | {"rows": tensors["rows"][:, :1].expand(-1, 50)})
    check(backend, tensors | {"bias": tensors["bias"][:, :1].expand(-1, 40)})


@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_upstream_gradient(backend: Backend, dtype: torch.dtype, transposed: bool) -> None:
    product = Product(Case("", Shape(60, 45, 37, 5, 2), balanced), dtype, bias=True, transposed=transposed)
    tensors = backend.put(product.tensors())
    leaves = [tensors[name].requires_grad_() for name in ("rows", "weight", "bias")]
    out = moe_ext.grouped_gemm(**tensors, transposed=transposed)
    upstream = torch.randn(out.shape).to(dtype).to(out)
    expected = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    for variant, strided in strided_variants(upstream):
        for leaf, want in zip(torch.autograd.grad(out, leaves, strided, retain_graph=True), expected, strict=True):
            assert_same_bits(leaf, want, variant)
    ones = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    for got, want in zip(torch.autograd.grad(out.sum(), leaves), ones, strict=True):  # sum's gradient is expanded
        assert_same_bits(got, want, "expanded")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_features(backend: Backend, dtype: torch.dtype) -> None:
    offsets, bias = backend.put((torch.tensor([0, 2, 3], dtype=torch.int32), torch.randn(2, 5).to(dtype)))
    rows, weight = backend.put((torch.empty(4, 0, dtype=dtype), torch.empty(2, 5, 0, dtype=dtype)))
    assert moe_ext.grouped_gemm(rows, weight, offsets).eq(0).all()
    out = moe_ext.grouped_gemm(rows, weight, offsets, bias=bias)
    assert torch.equal(out, torch.cat((bias[:1], bias[:1], bias[1:], torch.zeros_like(bias[:1]))))
    rows, weight = backend.put((torch.ones(4, 3, dtype=dtype), torch.empty(2, 0, 3, dtype=dtype)))
    assert moe_ext.grouped_gemm(rows, weight, offsets).shape == (4, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_stays_in_its_row_and_its_expert(backend: Backend, dtype: torch.dtype) -> None:
    """Rows are computed side by side in one register, experts one after the other in one scratch buffer."""
    tensors = backend.put(Product(Case("", Shape(60, 45, 37, 3, 1), exact_counts((20, 33, 7))), dtype).tensors())
    clean = moe_ext.grouped_gemm(**tensors)
    rows, weight = tensors["rows"].clone(), tensors["weight"].clone()
    rows[31] = float("nan")
    spoiled = moe_ext.grouped_gemm(**tensors | {"rows": rows})
    assert spoiled[31].isnan().all()
    others = torch.arange(60) != 31
    assert_same_bits(spoiled[others], clean[others], "other rows")
    weight[1, 17] = float("inf")
    spoiled = moe_ext.grouped_gemm(**tensors | {"weight": weight})
    assert not spoiled[20:53, 17].isfinite().any()
    others = torch.arange(37) != 17
    assert_same_bits(spoiled[:, others], clean[:, others], "other columns")
    assert_same_bits(spoiled[:20], clean[:20], "expert 0")
    assert_same_bits(spoiled[53:], clean[53:], "expert 2")


# Weight gradients -------------------------------------------------------------------------------------------------


def wgrad_problem(
    problem: Case, dtype: torch.dtype, gather: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """rows, grad_out, expert_offsets, gather."""
    tensors = Product(problem, dtype, gather=gather).tensors()
    num_rows = problem.shape.num_tokens * problem.shape.top_k
    grad_out = torch.randn(num_rows, problem.shape.intermediate_size)
    grad_out[int(tensors["expert_offsets"][-1]) :] = float("nan")
    return tensors["rows"], grad_out.to(dtype), tensors["expert_offsets"], tensors.get("gather")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_without_rows_get_exact_zeros(backend: Backend, dtype: torch.dtype) -> None:
    """With NaN in the scratch memory of the kernel, too: left there by a product of NaN."""
    rows, grad_out, offsets, _ = backend.put(wgrad_problem(case("half_empty"), dtype))
    nan = torch.full_like(rows, float("nan"))
    for transposed in (False, True):
        raw.grouped_gemm_wgrad(nan, grad_out, offsets, None, transposed)
        result = raw.grouped_gemm_wgrad(rows, grad_out, offsets, None, transposed)
        assert_same_bits(result[::2], torch.zeros_like(result[::2]), "empty experts")
        assert (result[1::2] != 0).flatten(1).any(1).all()
        assert result.isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "padded", "permuted", "every_second", "misaligned"])
@pytest.mark.parametrize("aligned", [False, True], ids=["odd", "aligned"])
@pytest.mark.parametrize("gather", [False, True], ids=["rows", "gather"])
@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wgrad_accumulates(
    backend: Backend, dtype: torch.dtype, transposed: bool, gather: bool, aligned: bool, layout: str
) -> None:
    """Added to what stands there, in float32, twice; what lies between the elements stays as it is."""
    n, k = (136, 72) if aligned else (37, 45)
    on_cpu = wgrad_problem(Case("", Shape(90, k, n, 6, 2), sentinels), dtype, gather)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = (6, k, n) if transposed else (6, n, k)
    accumulator = backend.put(strided_like(layout, sizes, wide))
    storage_before = torch.as_strided(accumulator, (accumulator.untyped_storage().nbytes() // wide.itemsize,), (1,), 0)
    outside = torch.ones_like(storage_before, dtype=torch.bool)
    torch.as_strided(outside, accumulator.shape, accumulator.stride(), accumulator.storage_offset()).fill_(False)
    untouched = storage_before[outside].clone()
    start = accumulator.cpu().clone()

    rows, grad_out, offsets, gather_index = backend.put(on_cpu)
    for _ in range(2):
        raw.grouped_gemm_wgrad_(rows, grad_out, offsets, gather_index, transposed, accumulator)
    rows, grad_out, offsets, gather_index = on_cpu

    def sums(to: torch.dtype) -> Tensor:
        result = start.to(to, copy=True)
        for expert in range(6):
            begin, end = int(offsets[expert]), int(offsets[expert + 1])
            source = rows[begin:end] if gather_index is None else rows[gather_index[begin:end].long()]
            product = grad_out[begin:end].to(to).mT @ source.to(to)
            result[expert] += 2 * (product.mT if transposed else product)
        return result

    assert_close_to_truth(accumulator.contiguous(), sums(torch.float64), sums(wide), layout)
    assert torch.equal(storage_before[outside], untouched)


def strided_like(layout: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    experts, rows, columns = sizes
    base = {
        "contiguous": torch.randn(sizes, dtype=dtype),
        "padded": torch.randn(experts, rows + 2, columns + 5, dtype=dtype)[:, 1:-1, 2:-3],
        "permuted": torch.randn(columns, experts, rows, dtype=dtype).permute(1, 2, 0),
        "every_second": torch.randn(experts, 2 * rows, 2 * columns, dtype=dtype)[:, ::2, 1::2],
        "misaligned": torch.randn(experts * rows * columns + 1, dtype=dtype)[1:].view(sizes),
    }[layout]
    assert base.shape == sizes
    return base


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wgrad_accumulation_leaves_empty_experts_alone(backend: Backend, dtype: torch.dtype) -> None:
    rows, grad_out, offsets, _ = backend.put(wgrad_problem(case("half_empty"), dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    accumulator = torch.full((9, grad_out.shape[1], rows.shape[1]), float("nan"), dtype=wide, device=backend.device)
    accumulator[1::2] = 0
    raw.grouped_gemm_wgrad_(rows, grad_out, offsets, None, False, accumulator)
    assert accumulator[::2].isnan().all()
    assert accumulator[1::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wgrad_accumulates_without_rounding_to_the_data(backend: Backend, dtype: torch.dtype) -> None:
    """One row of 1/4096 at a time onto 1 is lost in 16 bits and exact in float32."""
    ones, offsets = backend.put((torch.ones(1, 8, dtype=dtype), torch.tensor([0, 1], dtype=torch.int32)))
    accumulator = torch.ones(1, 8, 8, device=backend.device)
    for _ in range(16):
        raw.grouped_gemm_wgrad_(ones, ones / 4096, offsets, None, False, accumulator)
    assert (accumulator == 1 + 16 / 4096).all()


# Autograd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gather", [False, True], ids=["rows", "gather"])
@pytest.mark.parametrize("transposed", [False, True], ids=["n_c", "c_n"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(backend: Backend, case: Case, transposed: bool, gather: bool) -> None:
    tensors = Product(case, torch.float64, bias=True, transposed=transposed, gather=gather).tensors()
    tensors["rows"].nan_to_num_(nan=0.5)  # gradcheck perturbs every row, read or not
    tensors = backend.put(tensors)
    offsets, gather_index = tensors["expert_offsets"], tensors.get("gather")

    def run(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return moe_ext.grouped_gemm(rows, weight, offsets, bias=bias, gather=gather_index, transposed=transposed)

    leaves = [tensors[name].requires_grad_() for name in ("rows", "weight", "bias")]
    # All of the Jacobian, or two projections of it, where a call takes long.
    assert torch.autograd.gradcheck(run, leaves, fast_mode=backend.is_virtual)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=backend.is_virtual)


# The tests themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_kernel_is_caught(dtype: torch.dtype) -> None:
    """Faults that a kernel might have, planted around the right one: none passes the comparison."""
    tensors = Product(Case("", Shape(150, 100, 60, 4, 2), balanced), dtype, bias=True).tensors()
    offsets = tensors["expert_offsets"].tolist()

    def swapped_experts(rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor) -> Tensor:
        return moe_ext.grouped_gemm(rows, weight[[1, 0, 2, 3]], expert_offsets, bias=bias)

    def row_to_the_neighbour(rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor) -> Tensor:
        moved = expert_offsets.clone()
        moved[2] += 1
        return moe_ext.grouped_gemm(rows, weight, moved, bias=bias)

    def last_of_k_left_out(rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor) -> Tensor:
        mask = torch.arange(100) < 99
        return moe_ext.grouped_gemm(rows * mask, weight, expert_offsets, bias=bias)

    def bias_twice_on_one_column(rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor) -> Tensor:
        return moe_ext.grouped_gemm(rows, weight, expert_offsets, bias=bias * (1 + (torch.arange(60) == 59)).to(dtype))

    def last_row_not_written(rows: Tensor, weight: Tensor, expert_offsets: Tensor, bias: Tensor) -> Tensor:
        kept = torch.arange(rows.shape[0]) != offsets[2] - 1
        return moe_ext.grouped_gemm(rows, weight, expert_offsets, bias=bias) * kept[:, None]

    for mutant in (
        swapped_experts, row_to_the_neighbour, last_of_k_left_out, bias_twice_on_one_column, last_row_not_written,
    ):  # fmt: skip
        with pytest.raises(AssertionError, match=r"largest error|tiles stand out|cosine"):
            check_against_truth(mutant, reference.grouped_gemm, tensors)
