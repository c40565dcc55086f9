"""Laws that hold for any shape, routing, dtype and option: exactly, or within the tolerance of the truth."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moe_ext
from moe_ext import reference
from moe_ext.reference import ACTIVATIONS
from tests.support.backends import Backend
from tests.support.cases import Case, Shape
from tests.support.inputs import make_inputs, strided_variants
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth, run_on

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Problem:
    case: Case
    dtype: torch.dtype
    bias: bool
    options: tuple[tuple[str, Any], ...]
    seed: int
    variant: int  # of the strides of every tensor

    def tensors(self) -> dict[str, Tensor]:
        return self.strided(self.contiguous())

    def contiguous(self) -> dict[str, Tensor]:
        options = dict(self.options)
        return make_inputs(
            self.case, self.dtype, activation=options["activation"], bias=self.bias,
            interleaved=options["interleaved"], transposed=options["transposed"], seed=self.seed,
        ).tensors()  # fmt: skip

    def strided(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        strided = {}
        for index, (name, tensor) in enumerate(tensors.items()):
            variants = list(strided_variants(tensor))
            strided[name] = variants[(self.variant + index) % len(variants)][1] if self.variant else tensor
        return strided

    def run(self, backend: Backend, tensors: dict[str, Tensor], **more: Any) -> dict[str, Tensor]:
        return run_on(backend, moe_ext.fused_experts, tensors, **dict(self.options) | more)


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Problem:
    num_experts, top_k = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    num_tokens = draw(st.one_of(st.integers(0, 5), st.integers(0, 70)))
    shape = Shape(num_tokens, draw(st.integers(1, 70)), draw(st.integers(1, 40)), num_experts, top_k)
    # Some routings use few experts, most leave some empty, some have sentinels on either side.
    low, high = draw(st.integers(-2, num_experts - 1)), draw(st.integers(0, num_experts + 1))
    low, high = min(low, high), max(low, high)

    def routing(shape: Shape, generator: torch.Generator) -> Tensor:
        return torch.randint(low, high + 1, (shape.num_tokens, shape.top_k), generator=generator)

    options = {
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "interleaved": draw(st.booleans()),
        "transposed": draw(st.booleans()),
        "apply_weights": draw(st.sampled_from(["output", "input"])),
        "save": draw(st.sampled_from(["preact", "none"])),
        "limit": draw(st.sampled_from([0.5, 7.0])),
    }
    name = f"{shape} ids {low}..{high}"
    return Problem(
        Case(name, shape, routing), draw(st.sampled_from(dtypes)), draw(st.booleans()), tuple(options.items()),
        draw(st.integers(0, 2**16)), draw(st.integers(0, 6)),
    )  # fmt: skip


@settings(max_examples=40)
@given(problem=problems(dtypes=(torch.float32, torch.float64)))
def test_close_to_the_truth(backend: Backend, problem: Problem) -> None:
    if not backend.takes(problem.seed):
        return
    check_against_truth(
        moe_ext.fused_experts, reference.fused_experts, problem.tensors(), backend=backend, **dict(problem.options)
    )


@settings(max_examples=30)
@given(problem=problems(), columns=st.integers(64, 70))
def test_how_it_is_done_changes_no_bit(backend: Backend, problem: Problem, columns: int) -> None:
    """Strides, what backward keeps and the size of the workspace."""
    if not backend.takes(problem.seed):
        return
    tensors = problem.tensors()
    expected = problem.run(backend, problem.contiguous() if backend.is_cpu else tensors)
    limit = max(1, columns * problem.case.shape.num_tokens * problem.case.shape.top_k * problem.dtype.itemsize)
    for save in ("preact", "none"):
        result = problem.run(backend, tensors, save=save, workspace_limit=limit)
        if dict(problem.options)["apply_weights"] == "input":
            del result["grad_topk_weights"]  # the one sum that runs across slabs
        for key, value in result.items():
            assert_same_bits(value, expected[key], key)


@settings(max_examples=30)
@given(problem=problems(), data=st.data())
def test_names_of_experts_do_not_matter(backend: Backend, problem: Problem, data: st.DataObject) -> None:
    if not backend.takes(problem.seed):
        return
    tensors, num_experts = problem.contiguous(), problem.case.shape.num_experts
    order = torch.tensor(data.draw(st.permutations(range(num_experts))))
    # Expert e becomes expert rank[e]; ids that name no expert stay what they are.
    rank = order.argsort()
    ids = tensors["topk_ids"].long()
    inside = (ids >= 0) & (ids < num_experts)
    renamed = {name: tensor[order] for name, tensor in tensors.items() if name[:2] in ("w_", "b_")}
    renamed["topk_ids"] = torch.where(inside, rank[ids.clamp(0, num_experts - 1)], ids).to(torch.int32)
    before, after = (problem.run(backend, problem.strided(given)) for given in (tensors, tensors | renamed))
    for key, value in after.items():
        expected = before[key][order] if key[:7] in ("grad_w_", "grad_b_") else before[key]
        assert_same_bits(value, expected, key)


@settings(max_examples=30)
@given(problem=problems(), data=st.data())
def test_order_of_tokens_does_not_matter(backend: Backend, problem: Problem, data: st.DataObject) -> None:
    """To what belongs to a token. Weight gradients sum over the tokens in their order."""
    if not backend.takes(problem.seed):
        return
    # Picking tokens makes copies without gaps.
    given = problem.tensors() if backend.is_cpu else problem.contiguous()
    tensors = backend.put(given)
    chosen = torch.tensor(data.draw(st.permutations(range(problem.case.shape.num_tokens))), dtype=torch.long)
    chosen = chosen[: data.draw(st.integers(0, len(chosen)))]
    options = dict(problem.options) | {"deterministic": True}
    upstream = torch.ones_like(tensors["x"])

    def run(picked: dict[str, Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = {name: picked[name].detach().requires_grad_() for name in ("x", "topk_weights")}
        y = moe_ext.fused_experts(**picked | leaves, **options)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream)]

    per_token = ("x", "topk_weights", "topk_ids")
    some = tensors | {name: tensors[name][chosen] for name in per_token}
    for part, whole in zip(run(some, upstream[chosen]), run(tensors, upstream), strict=True):
        assert_same_bits(part, whole[chosen], "tokens picked out")


@settings(max_examples=30)
@given(problem=problems(), sentinel=st.sampled_from([-1, -(2**31), 2**31 - 1]))
def test_a_slot_without_expert_changes_no_bit(backend: Backend, problem: Problem, sentinel: int) -> None:
    if not backend.takes(problem.seed):
        return
    tensors = problem.contiguous()
    num_tokens, top_k = tensors["topk_ids"].shape
    more_ids = torch.cat((tensors["topk_ids"], torch.full((num_tokens, 1), sentinel, dtype=torch.int32)), 1)
    more_weights = torch.cat((tensors["topk_weights"], torch.full((num_tokens, 1), float("nan"))), 1)
    more = {"topk_ids": more_ids, "topk_weights": more_weights.to(tensors["topk_weights"].dtype)}
    before, after = (problem.run(backend, problem.strided(given)) for given in (tensors, tensors | more))
    assert (after["grad_topk_weights"][:, top_k] == 0).all()
    after["grad_topk_weights"] = after["grad_topk_weights"][:, :top_k]
    for key, value in after.items():
        assert_same_bits(value.contiguous(), before[key], key)


@settings(max_examples=30)
@given(problem=problems())
def test_twice_the_weights_give_twice_the_output(backend: Backend, problem: Problem) -> None:
    """Exactly, a factor of two being exact; the gradient of the weights stays as it is."""
    if not backend.takes(problem.seed):
        return
    problem = Problem(
        problem.case, problem.dtype, problem.bias, (*problem.options, ("apply_weights", "output")), problem.seed, 0
    )
    tensors = problem.tensors()
    twice_the_weights = tensors | {"topk_weights": 2 * tensors["topk_weights"]}
    once, twice = problem.run(backend, tensors), problem.run(backend, twice_the_weights)
    # Below the smallest normal number a factor of two isn't exact.
    tiny = torch.finfo(problem.dtype).smallest_normal
    normal = once["output"].abs() >= tiny
    assert torch.equal(twice["output"][normal], 2 * once["output"][normal])
    assert_same_bits(twice["grad_topk_weights"], once["grad_topk_weights"], "grad_topk_weights")


@settings(max_examples=25)
@given(problem=problems(), with_gather=st.booleans())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_gemm_is_a_product_per_expert(
    backend: Backend, problem: Problem, dtype: torch.dtype, with_gather: bool
) -> None:
    """Integers from -4 to 4: every sum is exact, whatever its order, so every result is exact, gradients included."""
    if not backend.takes(problem.seed):
        return
    shape, transposed = problem.case.shape, dict(problem.options)["transposed"]
    generator = torch.Generator().manual_seed(problem.seed)

    def whole(*sizes: int, high: int) -> Tensor:
        return torch.randint(-high, high + 1, sizes, generator=generator).to(dtype)

    ids = problem.case.topk_ids(problem.seed)
    offsets, row_to_slot, _ = reference.permute(ids, shape.num_experts)
    num_rows = row_to_slot.numel()
    gather = row_to_slot.clamp(min=0).div(shape.top_k, rounding_mode="floor") if with_gather else None
    index = {"expert_offsets": offsets, "gather": gather}
    weight = whole(shape.num_experts, shape.intermediate_size, shape.hidden_size, high=1)
    tensors = {
        "rows": whole(shape.num_tokens if with_gather else num_rows, shape.hidden_size, high=1),
        "weight": weight.mT.contiguous() if transposed else weight,
        "bias": whole(shape.num_experts, shape.intermediate_size, high=4),
    }
    upstream = whole(num_rows, shape.intermediate_size, high=1)

    def results(
        function: Any, tensors: dict[str, Tensor], index: dict[str, Tensor | None], upstream: Tensor
    ) -> list[Tensor]:
        leaves = [tensor.requires_grad_() for tensor in tensors.values()]
        out = function(**tensors, **index, transposed=transposed)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]

    actual = results(moe_ext.grouped_gemm, *backend.put((tensors, index, upstream)))
    for got, expected in zip(actual, results(reference.grouped_gemm, tensors, index, upstream), strict=True):
        assert torch.equal(got.cpu(), expected)
