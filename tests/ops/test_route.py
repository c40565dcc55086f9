"""route and its gradient on every backend.

Logits of most tests are multiples of 1/64 (or integers): exact in every dtype, and far enough apart that no score
rounds to another's. So the choice has one right answer, ties included, and ids are compared exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.support.known_truth import check_with_known_truth, forget
from tests.support.tolerance import assert_same_bits
from tests.support.truth import check_against_truth

raw = torch.ops.moe_ext
INF, NAN = float("inf"), float("nan")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# T, E, K: one of everything, every expert, odd sizes, past every block and tile of the kernels.
SIZES = (
    (1, 1, 1),
    (9, 8, 2),
    (5, 7, 7),
    (33, 128, 8),
    (12, 257, 6),
    (12, 4096, 8),
    (2, 300, 300),
    (3, 1040, 400),
)


@pytest.fixture(autouse=True, scope="module")
def _truths_of_this_module() -> Iterator[None]:
    yield
    forget()


@dataclass(frozen=True)
class Scoring:
    score: str
    softmax_after: bool = False

    def __str__(self) -> str:
        return f"{self.score}{'_after' if self.softmax_after else ''}"

    @property
    def options(self) -> dict[str, Any]:
        return {"score": self.score, "softmax_after": self.softmax_after}


SCORINGS = (
    Scoring("softmax"),
    Scoring("softmax", softmax_after=True),
    Scoring("sigmoid"),
    Scoring("sqrtsoftplus"),
    Scoring("none"),
)


def grid_logits(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    """Multiples of 1/64 in [-4, 4), all different within a row as long as there are so many.

    Equal ones are for ``test_ties_go_to_the_lower_index``: the reference in float32 cannot be trusted with them, as
    torch.sigmoid gives equal logits different bits where its vectorised loop leaves a rest.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(num_tokens, 512 * -(-num_experts // 512), generator=generator).argsort(-1) % 512
    return (steps[:, :num_experts] - 256) / 64


def raw_options(**options: Any) -> tuple[Any, ...]:
    """score .. nonfinite of the raw op, after top_k."""
    defaults: dict[str, Any] = {
        "score": "softmax", "softmax_after": False, "bias": None, "num_groups": 1, "topk_groups": 1, "group_top": 1,
        "group_fill": "-inf", "renormalize": False, "eps": 1e-20, "scale": 1.0, "nonfinite": "propagate",
    }  # fmt: skip
    assert options.keys() <= defaults.keys()
    return tuple((defaults | options).values())


def gradient(logits: Tensor, ids: Tensor, grad_weights: Tensor, **options: Any) -> Tensor:
    chosen = dict(zip(("score", "softmax_after", *"_" * 5, "renormalize", "eps", "scale", "nonfinite"),
                      raw_options(**options), strict=True))  # fmt: skip
    chosen.pop("_")
    return raw.route_backward(grad_weights, logits, ids, *chosen.values())


@dataclass(frozen=True)
class Problem:
    """Distinct logits, so that every precision chooses the same experts."""

    num_tokens: int
    num_experts: int
    top_k: int
    dtype: torch.dtype
    scoring: Scoring
    renormalize: bool

    @property
    def options(self) -> dict[str, Any]:
        return {"top_k": self.top_k, **self.scoring.options, "renormalize": self.renormalize, "scale": 2.5}

    def tensors(self, seed: int) -> dict[str, Tensor]:
        logits = grid_logits(self.num_tokens, self.num_experts, seed)
        # The sum of raw logits may be near 0, where dividing by it says nothing.
        return {"router_logits": (logits.abs() + 0.5 if self.scoring.score == "none" else logits).to(self.dtype)}


def weights_of(router_logits: Tensor, **options: Any) -> Tensor:
    return moe_ext.route(router_logits, **options).topk_weights


def reference_weights_of(router_logits: Tensor, **options: Any) -> Tensor:
    return reference.route(router_logits, **options)[0]


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_weights_ids_and_gradients(
    backend: Backend, size: tuple[int, int, int], dtype: torch.dtype, scoring: Scoring, renormalize: bool
) -> None:
    problem = Problem(*size, dtype, scoring, renormalize)
    check_with_known_truth(backend, weights_of, reference_weights_of, problem)
    logits = problem.tensors(0)["router_logits"]
    expected = reference.route(logits.double(), **problem.options)[1]
    assert_same_bits(moe_ext.route(backend.put(logits), **problem.options).topk_ids, expected, "topk_ids")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_experts", [1, 5, 16, 32, 33, 100, 257, 4096])
def test_ties_go_to_the_lower_index(backend: Backend, num_experts: int, dtype: torch.dtype) -> None:
    """Few values, both zeros, infinities and NaN among them; NaN first, -0 equal to 0."""
    values = torch.tensor([-INF, -2.0, -0.0, 0.0, 1.5, INF, NAN, -NAN])
    logits = values[torch.randint(len(values), (20, num_experts))].to(dtype)
    _, ids = raw.route(backend.put(logits), num_experts, *raw_options(score="none"))
    for row, got in zip(logits.tolist(), ids.tolist(), strict=True):
        keys = [(0, 0.0, i) if z != z else (1, -z + 0.0, i) for i, z in enumerate(row)]
        assert got == [i for _, _, i in sorted(keys)]


@given(data=st.data())
def test_any_groups_and_bias(backend: Backend, data: st.DataObject) -> None:
    """On integers, whose sums are exact: the ids of the reference, and weights that are the logits chosen."""
    size = data.draw(st.integers(1, 20), "experts of a group")
    num_groups = data.draw(st.integers(1, 9), "num_groups")
    topk_groups = data.draw(st.integers(1, num_groups), "topk_groups")
    group_top = data.draw(st.integers(1, size + 2), "group_top")
    group_fill = data.draw(st.sampled_from(["-inf", "0"]))
    num_experts = size * num_groups
    top_k = data.draw(st.integers(1, num_experts if group_fill == "0" else topk_groups * size), "top_k")
    spread = data.draw(st.sampled_from([1, 4, 60]))
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    num_tokens = data.draw(st.integers(0, 5))
    logits = torch.randint(-spread, spread + 1, (num_tokens, num_experts), generator=generator).to(dtype)
    bias = torch.randint(-spread, spread + 1, (num_experts,), generator=generator).float()
    options = {
        "score": "none", "bias": bias if data.draw(st.booleans()) else None, "num_groups": num_groups,
        "topk_groups": topk_groups, "group_top": group_top, "group_fill": group_fill,
    }  # fmt: skip
    weights, ids = raw.route(backend.put(logits), top_k, *raw_options(**backend.put(options)))
    expected_weights, expected_ids = reference.route(logits, top_k, **options)
    assert_same_bits(ids, expected_ids, "topk_ids")
    assert torch.equal(weights.cpu(), expected_weights)


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deepseek_v3_gate(backend: Backend, dtype: torch.dtype, renormalize: bool) -> None:
    """Sigmoid, selection bias, the best 4 of 8 groups by their best two. The bias is a multiple of 1/8 that moves
    whole bands of scores, so that the choice is clear."""
    bias = torch.randint(-3, 4, (256,), generator=torch.Generator().manual_seed(1)) / 8
    options = {
        "top_k": 8, "score": "sigmoid", "bias": bias, "num_groups": 8, "topk_groups": 4, "group_top": 2,
        "renormalize": renormalize, "scale": 2.5,
    }  # fmt: skip
    tensors = {"router_logits": grid_logits(60, 256, 0).to(dtype)}
    check_against_truth(
        moe_ext.route, reference.route, tensors, backend=backend, reference_options=options, **backend.put(options)
    )


@given(
    num_experts=st.integers(1, 300),
    top_k=st.integers(1, 20),
    scoring=st.sampled_from(SCORINGS),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_best_experts_of_any_logits(
    backend: Backend, num_experts: int, top_k: int, scoring: Scoring, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    """Without a grid two scores may round to one, so what was chosen need only be as good as the best."""
    top_k = min(top_k, num_experts)
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, num_experts, generator=generator)).to(dtype)
    bias = torch.randn(num_experts, generator=generator) if biased else None
    weights, ids = raw.route(backend.put(logits), top_k, *raw_options(**scoring.options, bias=backend.put(bias)))
    weights, ids = weights.cpu(), ids.cpu()
    assert all(len(set(row)) == top_k for row in ids.tolist())
    assert ids.min() >= 0
    assert ids.max() < num_experts
    plain = "none" if scoring.softmax_after else scoring.score
    all_weights, all_ids = reference.route(logits.double(), num_experts, score=plain)
    scores = torch.zeros(4, num_experts, dtype=torch.float64).scatter(1, all_ids.long(), all_weights)
    values = scores if bias is None else scores + bias
    chosen, best = values.gather(1, ids.long()), values.topk(top_k).values
    assert ((chosen - best).abs() <= 1e-6 * values.abs().amax()).all()
    expected = scores.gather(1, ids.long())
    if scoring.softmax_after:
        expected = expected.softmax(-1)
    assert torch.allclose(weights.double(), expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_whatever_the_company(backend: Backend, dtype: torch.dtype, scoring: Scoring) -> None:
    """Threads and the other tokens of a batch change nothing."""
    logits = backend.put(torch.randn(300, 77).to(dtype))
    grad = backend.put(torch.randn(300, 6, dtype=torch.float64 if dtype == torch.float64 else torch.float32))
    options = {**scoring.options, "renormalize": scoring.score != "none"}

    def run(which: slice) -> tuple[Tensor, ...]:
        weights, ids = raw.route(logits[which], 6, *raw_options(**options))
        return weights, ids, gradient(logits[which], ids, grad[which], **options)

    together = run(slice(None))
    for variation in backend.variations():
        for again, before in zip(run(slice(None)), together, strict=True):
            assert_same_bits(again, before, variation)
    for i in range(0, 300, 23):
        for alone, before in zip(run(slice(i, i + 1)), together, strict=True):
            assert_same_bits(alone[0], before[i], "alone")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(backend: Backend, dtype: torch.dtype) -> None:
    logits, bias = backend.put((torch.randn(9, 40).to(dtype), torch.randn(40)))
    weights, ids = raw.route(logits, 5, *raw_options(bias=bias))
    grad = torch.randn_like(weights)
    expected = gradient(logits, ids, grad)
    for (name, z), (_, g), (_, i) in zip(*map(strided_variants, (logits, grad, ids)), strict=True):
        for _, b in strided_variants(bias):
            again = raw.route(z, 5, *raw_options(bias=b))
            assert_same_bits(again[0], weights, name)
            assert_same_bits(again[1], ids, name)
        assert_same_bits(gradient(z, i, g), expected, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tokens(backend: Backend, dtype: torch.dtype) -> None:
    logits = backend.put(torch.empty(0, 8, dtype=dtype, requires_grad=True))
    weights, ids = moe_ext.route(logits, 2)
    assert weights.shape == ids.shape == (0, 2)
    weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 8)


def nonfinite_rows(num_experts: int) -> Tensor:
    z = torch.randn(8, num_experts)
    z[1, 2] = NAN
    z[2, 3] = INF
    z[3] = -INF
    z[4, 0] = -INF
    z[5] = NAN
    z[6, 0], z[6, 1:3] = -NAN, INF
    z[7], z[7, num_experts - 1] = -INF, 1.0
    return z


@pytest.mark.parametrize("nonfinite", ["propagate", "sanitize"])
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_experts", "top_k"), [(6, 6), (8, 3), (40, 5), (1100, 300)])
def test_nonfinite_logits(
    backend: Backend, num_experts: int, top_k: int, dtype: torch.dtype, scoring: Scoring, nonfinite: str
) -> None:
    logits = nonfinite_rows(num_experts).to(dtype)
    options = {**scoring.options, "nonfinite": nonfinite}
    on_backend = backend.put(logits)
    on_backend_weights, on_backend_ids = raw.route(on_backend, top_k, *raw_options(**options))
    weights, ids = on_backend_weights.cpu(), on_backend_ids.cpu()
    expected_weights, expected_ids = reference.route(logits, top_k, **options)
    if scoring.score == "softmax" and not scoring.softmax_after:
        # Softmax scores of random logits may tie after rounding; those rows are judged by their weights.
        same = (ids == expected_ids).all(-1)
        assert same[[1, 2, 3, 5, 6, 7]].all()
    else:
        assert torch.equal(ids, expected_ids)
    assert torch.allclose(weights, expected_weights, rtol=2e-6, atol=1e-30, equal_nan=True)
    if nonfinite == "propagate":
        assert all(len(set(row)) == top_k for row in ids.tolist())
        return
    dead = torch.isneginf(torch.where(logits.isnan(), -INF, logits)).all(-1)
    assert (ids[dead] == -1).all()
    assert (weights[dead] == 0).all()
    grad = gradient(on_backend, on_backend_ids, torch.randn_like(on_backend_weights), **options).cpu()
    assert grad.isfinite().all()
    assert (grad[logits.isnan() | logits.isposinf()] == 0).all()
    assert (grad[dead] == 0).all()
    # The first and the fifth row are finite, or have but an expert masked by -inf.
    assert grad[0].any()
    assert grad[4].any()


def test_a_nan_outside_the_choice_of_an_elementwise_score_stays_there(backend: Backend) -> None:
    """A deliberate difference to autograd of the dense formula, which spreads 0 * NaN over entries that no weight
    depends on."""
    logits, upstream = backend.put((torch.full((1, 4), NAN), torch.ones(1, 2)))
    _, ids = raw.route(logits, 2, *raw_options(score="sigmoid"))
    grad = gradient(logits, ids, upstream, score="sigmoid")
    assert grad.isnan().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("bad", [[NAN, 0.0], [0.0, INF], [-INF, -INF]], ids=str)
def test_nonfinite_logits_as_errors(backend: Backend, torch_threads: int, bad: list[float]) -> None:
    """The CPU names the first bad row. A GPU doesn't report back: a kernel ends with a failed assertion."""
    logits = torch.zeros(9000, 2)
    logits[[4321, 8999]] = torch.tensor([-INF, 0.0])
    options = raw_options(nonfinite="error")
    raw.route(backend.put(logits), 1, *options)
    logits[[4321, 8999]] = torch.tensor(bad)
    if backend.is_cpu:
        with pytest.raises(RuntimeError, match=r"router_logits: row 4321 holds NaN, \+inf or nothing but -inf"):
            raw.route(logits, 1, *options)
    elif backend.gpu is not None:
        with pytest.raises(RuntimeError, match="trap"):
            raw.route(backend.put(logits), 1, *options)
        fault = backend.gpu.clear_fault()
        assert fault is not None
        assert fault.kind == "trap"


@pytest.mark.parametrize("renormalize", [False, True], ids=["", "renormalize"])
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
def test_gradient_with_sentinels_and_repeated_ids(backend: Backend, scoring: Scoring, renormalize: bool) -> None:
    """Ids that a caller masked or duplicated: sentinels drop out, repeated ids add up."""
    logits = grid_logits(6, 40, 0).abs().add(0.5).double().requires_grad_()
    ids = torch.randint(-3, 44, (6, 5), dtype=torch.int32)
    ids[1] = ids[1, 0].clamp(0, 39)
    ids[2] = -1
    upstream = torch.randn(6, 5, dtype=torch.float64)
    valid = (ids >= 0) & (ids < 40)
    taken = torch.where(valid, ids, 0).long()
    if scoring.softmax_after:
        weights = torch.where(valid, logits.gather(1, taken), -INF).softmax(-1)
    else:
        all_weights, order = reference.route(logits, 40, score=scoring.score)
        weights = torch.zeros_like(logits).scatter(1, order.long(), all_weights).gather(1, taken)
    weights = torch.where(valid, weights, 0.0)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    kept = valid.any(-1)
    (expected,) = torch.autograd.grad(weights[kept], logits, upstream[kept])
    options = {**scoring.options, "renormalize": renormalize}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        given = backend.put((logits.detach().to(dtype), ids, upstream.to(dtype)))
        actual = gradient(*given, **options).cpu()
        assert torch.allclose(actual.double(), expected.nan_to_num(0.0), rtol=tolerance, atol=tolerance)
        assert not actual[2].any()


def test_wrong_arguments_are_errors(backend: Backend) -> None:
    z, ids, grad = backend.put((torch.randn(4, 8), torch.zeros(4, 2, dtype=torch.int32), torch.ones(4, 2)))
    for bad, message in (
        (lambda: raw.route(z, 9, *raw_options()), "top_k must be 1 .. 8"),
        (lambda: raw.route(z, 0, *raw_options()), "top_k must be 1 .. 8"),
        (lambda: raw.route(z[0], 1, *raw_options()), r"router_logits must be \[T, E\], got \[8\]"),
        (lambda: raw.route(z[:, :0], 1, *raw_options()), "router_logits must have 1"),
        (lambda: raw.route(z.long(), 1, *raw_options()), "router_logits must be Float"),
        (lambda: raw.route(z, 1, *raw_options(score="tanh")), "score must be one of softmax, sigmoid"),
        (lambda: raw.route(z, 1, *raw_options(score="none", softmax_after=True)), "softmax_after needs"),
        (lambda: raw.route(z, 1, *raw_options(bias=grad.new_zeros(7))), "bias must have E = 8"),
        (lambda: raw.route(z, 1, *raw_options(bias=grad.new_zeros(8).double())), "bias must be Float"),
        (lambda: raw.route(z, 1, *raw_options(num_groups=3)), "num_groups must divide 8"),
        (lambda: raw.route(z, 1, *raw_options(num_groups=0)), "num_groups must divide 8"),
        (lambda: raw.route(z, 1, *raw_options(num_groups=4, topk_groups=5)), "topk_groups must be 1 .. 4"),
        (lambda: raw.route(z, 5, *raw_options(num_groups=4, topk_groups=2)), "top_k must be at most 4"),
        (lambda: raw.route(z, 1, *raw_options(group_top=0)), "group_top must be at least 1"),
        (lambda: raw.route(z, 1, *raw_options(group_fill="1")), "group_fill must be one of"),
        (lambda: raw.route(z, 1, *raw_options(nonfinite="raise")), "nonfinite must be one of"),
        (lambda: gradient(z, ids.long(), grad), "topk_ids must be Int"),
        (lambda: gradient(z, ids[:3], grad), "topk_ids must have T = 4"),
        (lambda: gradient(z, ids, grad[:, :1]), "grad_weights must have K = 2"),
        (lambda: gradient(z, ids, grad.double()), "grad_weights must be Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bad()
