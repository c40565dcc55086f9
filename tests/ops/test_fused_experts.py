"""fused_experts against the float64 truth: every activation, option, layout, dtype and backend."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_ext
from moe_ext import reference
from moe_ext.reference import ACTIVATIONS
from tests.support.backends import Backend
from tests.support.cases import (
    CASES,
    SMALL_CASES,
    Case,
    Shape,
    balanced,
    case,
    exact_counts,
    half_empty,
    one_expert,
    sentinels,
)
from tests.support.inputs import make_inputs, strided_variants
from tests.support.known_truth import check_with_known_truth, forget
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth, run_on

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Past every block size of a kernel: rows of one expert (288), hidden and intermediate size (1024 and 512 along k).
BLOCKED = (
    Case("rows_cut", Shape(600, 48, 40, 2, 1), one_expert),
    Case("rows_at_the_cut", Shape(864, 24, 33, 3, 1), exact_counts((287, 288, 289))),
    Case("hidden_blocked", Shape(60, 1057, 40, 4, 2), balanced),
    Case("intermediate_blocked", Shape(60, 40, 1031, 4, 2), sentinels),
    Case("both_blocked", Shape(24, 1025, 1025, 2, 1), balanced),
    # For kernels that need multiples of 16 bytes: several tiles of rows and columns, many steps along k.
    Case("aligned_tiles", Shape(150, 264, 136, 2, 2), balanced),
    Case("aligned_steps", Shape(64, 392, 136, 4, 2), sentinels),
    Case("odd_steps", Shape(64, 277, 131, 3, 1), balanced),
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
class Experts:
    """The arguments of fused_experts."""

    case: Case
    dtype: torch.dtype
    activation: str = "swiglu"
    bias: bool = False
    interleaved: bool = False
    transposed: bool = False
    apply_weights: str = "output"

    @property
    def options(self) -> dict[str, Any]:
        # A limit that unit-variance inputs do reach, except with 16 bits: there rounding decides which of the values
        # near the limit have a gradient, so that no yardstick tells right from wrong. See test_clamps.
        return {
            "activation": self.activation, "interleaved": self.interleaved, "transposed": self.transposed,
            "apply_weights": self.apply_weights, "limit": 1.5 if self.dtype.itemsize > 2 else 7.0, "alpha": 1.3,
        }  # fmt: skip

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        return make_inputs(
            self.case, self.dtype, activation=self.activation, bias=self.bias, interleaved=self.interleaved,
            transposed=self.transposed, seed=seed,
        ).tensors()  # fmt: skip

    def run(self, backend: Backend, tensors: dict[str, Tensor] | None = None, **more: Any) -> dict[str, Tensor]:
        """Output and gradients of these tensors, or of its own."""
        given = self.tensors() if tensors is None else tensors
        return run_on(backend, moe_ext.fused_experts, given, **self.options | more)


def check(backend: Backend, experts: Experts) -> None:
    check_with_known_truth(backend, moe_ext.fused_experts, reference.fused_experts, experts)


def without_slab_sums(results: dict[str, Tensor], apply_weights: str) -> dict[str, Tensor]:
    """What a workspace limit leaves as it is to the bit: all but the one sum that runs across slabs."""
    summed = "grad_topk_weights" if apply_weights == "input" else None
    return {name: value for name, value in results.items() if name != summed}


def assert_all_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor], name: str = "") -> None:
    assert actual.keys() <= expected.keys()
    for key, value in actual.items():
        assert_same_bits(value, expected[key], f"{name} {key}".strip())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    check(backend, Experts(case, dtype, bias=True))


@pytest.mark.parametrize("transposed", [False, True], ids=["rows_out", "rows_in"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BLOCKED, ids=str)
def test_blocks(backend: Backend, case: Case, dtype: torch.dtype, transposed: bool) -> None:
    check(backend, Experts(case, dtype, transposed=transposed, interleaved=transposed))


def mostly_sentinels(shape: Shape, generator: torch.Generator) -> Tensor:
    """Every token may go to any expert, and few do: what experts that choose their tokens come to."""
    ids = torch.arange(shape.num_experts).repeat(shape.num_tokens, 1)[:, : shape.top_k]
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.15, -1)


@pytest.mark.parametrize("save", ["preact", "none", "fp8"])
@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [30, 2000], ids=["one_block", "chunks"])
def test_max_rows(backend: Backend, num_tokens: int, dtype: torch.dtype, apply_weights: str, save: str) -> None:
    """Buffers of as many rows as there are give the bits that buffers of all slots give."""
    if save == "fp8" and dtype == torch.float64:
        pytest.skip("no fp8 for float64")
    if num_tokens > 1000 and not (backend.is_cpu or (dtype == torch.bfloat16 and save == "preact")):
        pytest.skip("one of the long cases is enough on an emulator")
    case = Case("mostly_sentinels", Shape(num_tokens, 32, 24, 16, 16), mostly_sentinels)
    experts = Experts(case, dtype, bias=True, apply_weights=apply_weights)
    used = int((case.topk_ids() >= 0).sum())
    expected = experts.run(backend, save=save)
    coarse = max(2 * torch.finfo(dtype).eps, 1e-5)
    for max_rows in (used, used + 7, num_tokens * 16, 2**40):
        actual = experts.run(backend, save=save, max_rows=max_rows)
        if backend.is_cpu:
            assert_all_same_bits(actual, expected, f"max_rows {max_rows} of {used}")
        for name, value in actual.items():
            assert torch.allclose(value.double(), expected[name].double(), rtol=coarse, atol=coarse), (name, max_rows)
    if backend.is_cpu:
        with pytest.raises(RuntimeError, match=f"max_rows must be at least {used}, .* got {used - 1}"):
            experts.run(backend, save=save, max_rows=used - 1)
    elif backend.gpu is not None:
        with pytest.raises(RuntimeError, match="trap"):
            experts.run(backend, save=save, max_rows=used - 1)
        fault = backend.gpu.clear_fault()
        assert fault is not None
        assert fault.kind == "trap"


def test_max_rows_keeps_less_for_backward() -> None:
    case = Case("mostly_sentinels", Shape(200, 32, 24, 16, 16), mostly_sentinels)
    tensors = Experts(case, torch.float32).tensors()
    used = int((case.topk_ids() >= 0).sum())
    saved: list[int] = []
    x = tensors["x"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        moe_ext.fused_experts(**tensors | {"x": x}, max_rows=used)
    assert used * 48 in saved
    assert 200 * 16 * 48 not in saved


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_options(backend: Backend, activation: str, dtype: torch.dtype, apply_weights: str) -> None:
    """Every layout, with and without bias: half of the combinations with either place of the weights. What backward
    recomputes and the size of the workspace change no bit."""
    # Small on the emulator, with multiples of 16 bytes for the tensor cores.
    shape = Shape(24, 72, 40, 8, 6) if backend.is_virtual else Shape(90, 70, 33, 16, 6)
    problem = Case("options", shape, sentinels)
    for bias, interleaved, transposed in product([False, True], repeat=3):
        if (bias + interleaved + transposed) % 2 != (apply_weights == "input"):
            continue
        experts = Experts(problem, dtype, activation, bias, interleaved, transposed, apply_weights)
        check(backend, experts)
        if backend.is_virtual and (interleaved or transposed):
            continue
        expected = experts.run(backend)
        otherwise = experts.run(backend, save="none", workspace_limit=64 * shape.num_tokens * 6 * dtype.itemsize)
        assert_all_same_bits(without_slab_sums(otherwise, apply_weights), expected)


@pytest.mark.parametrize("save", ["preact", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_workspace_limit(backend: Backend, dtype: torch.dtype, save: str) -> None:
    experts = Experts(Case("", Shape(50, 325, 40, 6, 3), sentinels), dtype, bias=True)
    column = 150 * dtype.itemsize
    all_columns = (64, 65, 127, 128, 200, 324, 325, 10**6)
    if backend.is_virtual:
        experts = replace(experts, case=Case("", Shape(50, 200, 24, 6, 3), sentinels))
        all_columns = (65, 130)
    for apply_weights in ("output", "input"):
        expected = experts.run(backend, save=save, apply_weights=apply_weights)
        for columns in all_columns:
            limit = columns * column
            result = experts.run(backend, save=save, apply_weights=apply_weights, workspace_limit=limit)
            assert_all_same_bits(without_slab_sums(result, apply_weights), expected, f"{columns} columns")
            limited = partial(moe_ext.fused_experts, workspace_limit=limit)
            known = replace(experts, apply_weights=apply_weights)
            check_with_known_truth(backend, limited, reference.fused_experts, known)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_workspace_limit_too_small_names_the_bytes(backend: Backend, dtype: torch.dtype) -> None:
    experts = Experts(Case("", Shape(50, 325, 40, 6, 3), balanced), dtype)
    smallest = 64 * 150 * dtype.itemsize
    experts.run(backend, workspace_limit=smallest)
    for limit in (1, smallest - 1):
        with pytest.raises((RuntimeError, ValueError), match=f"at least {smallest} bytes.*got {limit}"):
            experts.run(backend, workspace_limit=limit)


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("layout", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("aligned", [False, True], ids=["odd", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(
    backend: Backend, dtype: torch.dtype, aligned: bool, layout: tuple[bool, bool], apply_weights: str
) -> None:
    """With NaN in the gaps. The contiguous tensors give the same bits: strides change the way, not the sums. But where
    tensor cores serve those alone (``aligned``), only the truth is the same."""
    problem = Case("", Shape(30, 48, 40, 5, 2) if aligned else Shape(30, 45, 37, 5, 2), sentinels)
    experts = Experts(problem, dtype, "geglu", True, *layout, apply_weights)
    tensors, expected = experts.tensors(), experts.run(backend)
    for name, tensor in tensors.items():
        for variant, strided in strided_variants(tensor):
            given = tensors | {name: strided}
            if aligned and not backend.strides_keep_bits(dtype):
                check_against_truth(
                    moe_ext.fused_experts, reference.fused_experts, given, backend=backend, **experts.options
                )
                continue
            result = experts.run(backend, given)
            if aligned and not backend.is_cpu:
                by_rows, wanted = result.pop("grad_topk_weights"), expected["grad_topk_weights"]
                rounding = 32 * torch.finfo(dtype).eps * wanted.abs().max().item()
                assert torch.allclose(by_rows, wanted, rtol=0, atol=rounding), f"{variant} {name}"
            assert_all_same_bits(result, expected, f"{variant} {name}:")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded(backend: Backend, dtype: torch.dtype) -> None:
    """Stride 0 in any dimension of any argument gives the bits of the copy with its own memory."""
    experts = Experts(Case("", Shape(40, 45, 37, 5, 2), balanced), dtype, bias=True)
    tensors = experts.tensors()
    for name, tensor in tensors.items():
        for dim in range(tensor.dim()):
            expanded = tensor.narrow(dim, 0, 1).expand_as(tensor)
            actual, expected = (
                experts.run(backend, tensors | {name: given}) for given in (expanded, expanded.contiguous())
            )
            assert_all_same_bits(actual, expected, f"{name} expanded in {dim}:")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_upstream_gradient(backend: Backend, dtype: torch.dtype) -> None:
    tensors = backend.put(Experts(Case("", Shape(30, 45, 37, 5, 2), balanced), dtype, bias=True).tensors())
    leaves = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    y = moe_ext.fused_experts(**tensors)
    upstream = torch.randn(y.shape).to(dtype).to(y)
    expected = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    for variant, strided in strided_variants(upstream):
        for got, want in zip(torch.autograd.grad(y, leaves, strided, retain_graph=True), expected, strict=True):
            assert_same_bits(got, want, variant)
    ones = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    for got, want in zip(torch.autograd.grad(y.sum(), leaves), ones, strict=True):  # sum's gradient is expanded
        assert_same_bits(got, want, "expanded")


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows_out", "rows_in"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poisoned_memory(backend: Backend, dtype: torch.dtype, transposed: bool, apply_weights: str) -> None:
    """A run on NaN leaves the kernels' scratch memory full of it. The next one doesn't see it; empty experts get 0."""
    experts = Experts(
        Case("", Shape(30, 45, 37, 9, 3), half_empty), dtype,
        bias=True, transposed=transposed, apply_weights=apply_weights,
    )  # fmt: skip
    tensors = experts.tensors()
    nan = {name: torch.full_like(t, float("nan")) if t.is_floating_point() else t for name, t in tensors.items()}
    before = experts.run(backend)
    spoiled = experts.run(backend, nan)
    assert spoiled["output"].isnan().all()
    result = experts.run(backend)
    assert_all_same_bits(result, before)
    for name in ("w_gate_up", "w_down", "b_gate_up", "b_down"):
        for run in (result, spoiled):
            empty = run[f"grad_{name}"][::2]
            assert_same_bits(empty, torch.zeros_like(empty), name)


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sentinel_slots(backend: Backend, dtype: torch.dtype, apply_weights: str) -> None:
    """Their weights may be anything, NaN included; their gradient is an exact zero."""
    experts = Experts(case("sentinels"), dtype, bias=True, apply_weights=apply_weights)
    tensors = experts.tensors()
    outside = (tensors["topk_ids"] < 0) | (tensors["topk_ids"] >= 7)
    tensors["topk_weights"] = tensors["topk_weights"].masked_fill(outside, float("nan"))
    result = experts.run(backend, tensors)
    assert_all_same_bits(result, experts.run(backend))
    gradient = result["grad_topk_weights"]
    assert_same_bits(gradient[outside], torch.zeros_like(gradient[outside]), "grad_topk_weights")
    assert (gradient[~outside] != 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_token_spoils_only_itself_and_its_experts(backend: Backend, dtype: torch.dtype) -> None:
    experts = Experts(Case("", Shape(60, 45, 37, 12, 2), balanced), dtype, bias=True)
    tensors, clean = experts.tensors(), experts.run(backend)
    x = tensors["x"].clone()
    x[23] = float("nan")
    spoiled = experts.run(backend, tensors | {"x": x})
    others = torch.arange(60) != 23
    for name in ("output", "grad_x", "grad_topk_weights"):
        assert spoiled[name][23].isnan().all()
        assert_same_bits(spoiled[name][others], clean[name][others], name)
    others = torch.ones(12, dtype=torch.bool)
    others[tensors["topk_ids"][23].long()] = False
    for name in ("grad_w_gate_up", "grad_w_down", "grad_b_gate_up"):
        assert spoiled[name][~others].isnan().flatten(1).any(1).all()
        assert_same_bits(spoiled[name][others], clean[name][others], name)


@pytest.mark.parametrize("wanted", ["x", "w_gate_up", "w_down", "topk_weights", "b_gate_up", "b_down"])
@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_gradient_alone_has_the_bits_of_all(
    backend: Backend, dtype: torch.dtype, apply_weights: str, wanted: str
) -> None:
    experts = Experts(case("sentinels"), dtype, bias=True, apply_weights=apply_weights)
    everything = experts.run(backend)
    for save in ("preact", "none"):
        alone = experts.run(backend, gradients_of=[wanted], save=save)
        assert_same_bits(alone[f"grad_{wanted}"], everything[f"grad_{wanted}"], wanted)


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize(
    ("hidden_size", "intermediate_size", "top_k"), [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 1)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_of_zero(
    backend: Backend, dtype: torch.dtype, hidden_size: int, intermediate_size: int, top_k: int, apply_weights: str
) -> None:
    """What an empty sum gives: biases still count, and every gradient is written. In small integers, exactly."""

    def whole(*sizes: int) -> Tensor:
        return torch.randint(-2, 3, sizes).to(dtype)

    leaves = {
        "x": whole(5, hidden_size),
        "w_gate_up": whole(3, 2 * intermediate_size, hidden_size),
        "w_down": whole(3, hidden_size, intermediate_size),
        "b_gate_up": whole(3, 2 * intermediate_size),
        "b_down": whole(3, hidden_size),
        "topk_weights": whole(5, top_k).to(torch.float64 if dtype == torch.float64 else torch.float32),
    }
    ids, upstream = torch.randint(3, (5, top_k), dtype=torch.int32), whole(5, hidden_size)
    results = []
    for function, to in ((moe_ext.fused_experts, None), (reference.fused_experts, torch.float64)):
        given = {name: leaf.to(to or leaf.dtype, copy=True).requires_grad_() for name, leaf in leaves.items()}
        of_tokens = (ids, upstream)
        if to is None:
            given, of_tokens = backend.put(given), backend.put(of_tokens)
        y = function(**given, topk_ids=of_tokens[0], apply_weights=apply_weights)
        gradients: tuple[Tensor | None, ...] = (None,) * len(given)
        if y.requires_grad:
            gradients = torch.autograd.grad(y, list(given.values()), of_tokens[1].to(y.dtype), allow_unused=True)
        zeros = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, given.values(), strict=True)]
        results.append([y.detach(), *zeros])
    for name, actual, expected in zip(("y", *leaves), *results, strict=True):
        assert torch.equal(actual.cpu().double(), expected), name


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamps(backend: Backend, dtype: torch.dtype, interleaved: bool, apply_weights: str) -> None:
    """clamped_swiglu on both sides of the limit and on it, where no rounding can move a value across: each
    pre-activation is one of x, a half-integer."""
    problem = Case("", Shape(120, 64, 32, 8, 2), balanced)
    tensors = make_inputs(problem, dtype, interleaved=interleaved).tensors()
    tensors["x"] = torch.randint(-8, 9, (120, 64)).to(dtype) / 2
    tensors["w_gate_up"] = torch.stack([torch.eye(64)[torch.randperm(64)] for _ in range(8)]).to(dtype)
    tensors["topk_weights"] = torch.randint(1, 3, (120, 2)).to(tensors["topk_weights"].dtype) / 2
    options = {"activation": "clamped_swiglu", "interleaved": interleaved, "limit": 1.5, "apply_weights": apply_weights}
    # Weights of a half and one times half-integers: quarters, exact as well.
    check_against_truth(
        moe_ext.fused_experts, reference.fused_experts, tensors,
        backend=backend, gradients_of=("x", "w_gate_up", "w_down"), **options,
    )  # fmt: skip


@pytest.mark.parametrize("apply_weights", ["output", "input"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(backend: Backend, activation: str, apply_weights: str) -> None:
    names = [case.name for case in SMALL_CASES]
    for index, small in enumerate(SMALL_CASES):
        # Two bits of the index: each layout with some cases of each activation.
        experts = Experts(small, torch.float64, activation, True, index % 2 == 1, index // 2 % 2 == 1, apply_weights)
        tensors = backend.put(experts.tensors(seed=3))
        topk_ids = tensors.pop("topk_ids")
        keys, options = list(tensors), experts.options | {"save": "none" if index % 3 else "preact"}

        def run(*values: Tensor, keys: list[str] = keys, ids: Tensor = topk_ids, options: Any = options) -> Tensor:
            return moe_ext.fused_experts(**dict(zip(keys, values, strict=True)), topk_ids=ids, **options)

        leaves = [t.requires_grad_() for t in tensors.values()]
        # All of the Jacobian, or two projections of it, where a call takes long.
        assert torch.autograd.gradcheck(run, leaves, fast_mode=backend.is_virtual), names[index]


# The tests themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_kernel_is_caught(dtype: torch.dtype) -> None:
    """Faults that a kernel might have, planted around the right one: none passes the comparison."""

    def mutant(**changes: Any) -> Any:
        def run(**arguments: Any) -> Tensor:
            for name, change in changes.items():
                arguments[name] = change(arguments[name])
            return moe_ext.fused_experts(**arguments)

        return run

    def last_token_not_written(**arguments: Any) -> Tensor:
        y = moe_ext.fused_experts(**arguments)
        return torch.cat((y[:-1], torch.zeros_like(y[-1:])))

    swapped = [1, 0, 2, 3, 4, 5, 6, 7]
    mutants = {
        "w_down of two experts swapped": mutant(w_down=lambda w: w[swapped]),
        "w_gate_up of two experts swapped": mutant(w_gate_up=lambda w: w[swapped]),
        "b_down of two experts swapped": mutant(b_down=lambda b: b[swapped]),
        "gate and up taken for each other": mutant(
            w_gate_up=lambda w: w.roll(48, 1), b_gate_up=lambda b: b.roll(48, 1)
        ),
        "gate and up interleaved": mutant(interleaved=lambda _: True),
        "tanh approximation": mutant(activation=lambda _: "geglu_tanh"),
        "weights of the slots exchanged": mutant(topk_weights=lambda w: w.flip(1)),
        "weights at the wrong end": mutant(apply_weights=lambda _: "input"),
        "one slot lost": mutant(topk_ids=lambda ids: ids.masked_fill(torch.arange(64)[:, None] == 63, -1)),
        "last of the hidden size left out": mutant(x=lambda x: x * (torch.arange(64) < 63)),
        "last token not written": last_token_not_written,
    }
    if dtype.itemsize == 2:
        del mutants["tanh approximation"]  # differs by 5e-4 at most, less than 16 bits round
    experts = Experts(case("balanced"), dtype, "geglu", bias=True)
    for name, function in mutants.items():
        with pytest.raises(AssertionError, match=r"largest error|tiles stand out|cosine"):
            check_against_truth(function, reference.fused_experts, experts.tensors(), name=name, **experts.options)
