"""The parts that decide who is right, who sits out and what a ratio means."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from bench import runner, serving
from bench.check import BOUNDS, compare, evaluate, faults
from bench.contender import Contender, exclusion, missing_module
from bench.contenders import CONTENDERS
from bench.machine import without_folders
from bench.memory import bytes_kept_by, peak_bytes, saved_bytes
from bench.problem import Layer, Problem, make_problem, solve
from bench.report import summaries
from bench.results import Cell, Outcome
from bench.runner import Runner, Settings
from bench.serving import SERVING
from bench.shapes import TINY, Shape, find_shape
from bench.timing import time_interleaved


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return make_problem(TINY, request.param)


def _dense_layer(problem: Problem) -> Layer:
    """Every expert on every token, weighted by a dense [T,E] matrix: slow, and nothing like the contenders."""

    def layer(x: Tensor) -> Tensor:
        probabilities = F.linear(x, problem.w_router).softmax(-1)
        top = probabilities.topk(problem.shape.top_k).indices
        chosen = torch.zeros_like(probabilities).scatter(1, top, 1.0) * probabilities
        weights = chosen / chosen.sum(-1, keepdim=True)
        gate, up = torch.einsum("th,eih->tei", x, problem.w_gate_up).chunk(2, dim=-1)
        return torch.einsum("tei,ehi,te->th", F.silu(gate) * up, problem.w_down, weights)

    return layer


def test_truth_agrees_with_autograd_on_a_dense_float64_layer() -> None:
    problem = make_problem(TINY, torch.float64)
    errors = evaluate(_dense_layer(problem), problem, solve(problem, with_grads=True))
    assert set(errors) == {"y", "grad x", "grad w_router", "grad w_gate_up", "grad w_down"}
    # What is left is that the truth is kept in float32.
    assert max(error.relative for error in errors.values()) < 1e-7


@pytest.mark.parametrize("name", ["torch_loop", "torch_grouped_mm"])
def test_plain_contenders_are_right(problem: Problem, name: str) -> None:
    errors = evaluate(CONTENDERS[name].build(problem), problem, solve(problem, with_grads=True))
    assert faults(errors, BOUNDS[problem.dtype]) == []


def test_no_token_ties_at_its_last_expert() -> None:
    problem = make_problem(Shape("many", 2048, 64, 2, 64, 8), torch.bfloat16)
    top = F.linear(problem.x, problem.w_router).float().topk(problem.shape.top_k + 1).values
    assert bool((top[:, -2] > top[:, -1]).all())


def test_an_error_in_one_tile_is_seen() -> None:
    truth = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    got = truth.clone()
    got[512:528, 512:528] *= 1.2
    error = compare(got, truth)
    assert error.relative < BOUNDS[torch.bfloat16].output
    assert error.tile == pytest.approx(0.2, rel=1e-5)
    assert len(faults({"y": error}, BOUNDS[torch.bfloat16])) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_faults(bad: float) -> None:
    truth = torch.ones(4, 16, 16)
    got = truth.clone()
    got[3, 2, 1] = bad
    assert faults({"grad w_down": compare(got, truth)}, BOUNDS[torch.float32])


def test_a_wrong_shape_is_a_fault() -> None:
    assert faults({"y": compare(torch.ones(4, 1), torch.ones(4, 4))}, BOUNDS[torch.float32])


def _forgets_one_expert(problem: Problem) -> Layer:
    right = CONTENDERS["torch_loop"].build(problem)
    last = problem.shape.num_experts - 1

    def layer(x: Tensor) -> Tensor:
        keep = (problem.topk_ids() != last).all(dim=1, keepdim=True)
        return right(x) * keep

    return layer


def _wrong_gradient(problem: Problem) -> Layer:
    right = CONTENDERS["torch_loop"].build(problem)
    return lambda x: right(0.5 * x + (0.5 * x).detach())


def _raises(problem: Problem) -> Layer:
    raise RuntimeError("no [such] kernel")


def test_wrong_and_failing_contenders_are_reported_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders = {
        "torch_loop": CONTENDERS["torch_loop"],
        "forgets": Contender("forgets", "", _forgets_one_expert),
        "gradient": Contender("gradient", "", _wrong_gradient),
        "raises": Contender("raises", "", _raises),
        "absent": Contender("absent", "", _raises, partial(missing_module, "no_such_module")),
    }
    monkeypatch.setattr(runner, "CONTENDERS", contenders)
    settings = Settings(
        [TINY],
        ["fp32"],
        ["fwd", "fwdbwd"],
        list(contenders),
        5,
        torch.get_num_threads(),
        1 << 32,
        True,
        0,
        tmp_path / "r",
    )
    forward, both = Runner(settings, ["run"], Console(quiet=True)).run().cells
    assert [o.status for o in forward.outcomes] == ["ok", "wrong", "ok", "failed", "skipped"]
    assert [o.status for o in both.outcomes] == ["ok", "wrong", "wrong", "failed", "skipped"]
    assert "grad x" in str(both.outcomes[2].reason)
    assert "no [such] kernel" in str(both.outcomes[3].reason)
    assert [bool(o.seconds) for o in both.outcomes] == [True, False, False, False, False]


def test_who_would_move_too_much_sits_out(problem: Problem) -> None:
    eager, batched = CONTENDERS["hf_eager"], CONTENDERS["hf_batched_mm"]
    if eager.missing():
        pytest.skip(str(eager.missing()))
    itemsize = problem.x.element_size()
    copied = TINY.num_rows * TINY.expert_numel * itemsize
    assert exclusion(batched, problem, "fwd", copied) is None
    assert "per call" in str(exclusion(batched, problem, "fwd", copied - 1))
    zero_filled = TINY.num_experts**2 * TINY.expert_numel * itemsize
    assert exclusion(eager, problem, "fwd", 0) is None
    assert exclusion(eager, problem, "fwdbwd", zero_filled) is None
    assert "zero-filled" in str(exclusion(eager, problem, "fwdbwd", zero_filled - 1))


def test_who_cannot_compute_a_cell_says_so(problem: Problem) -> None:
    def needs(**conditions: Any) -> str | None:
        return exclusion(Contender("other", "", _raises, **conditions), problem, "fwdbwd", 0, "avx512")

    assert needs() is None
    assert needs(isa="avx2") is None
    assert needs(isa="amx") == "needs amx, this run is pinned to avx512"
    assert needs(forward_only=True) == "inference only"
    assert needs(dtype=problem.dtype) is None
    assert needs(dtype=torch.float16) == "float16 only"
    assert needs(refuses=lambda problem: "too odd") == "too odd"


@pytest.mark.parametrize("name", [contender.name for contender in SERVING])
def test_serving_kernels_are_right(problem: Problem, name: str) -> None:
    contender = CONTENDERS[name]
    even = make_problem(Shape("even", 48, 128, 64, 8, 2), problem.dtype)
    reason = exclusion(contender, even, "fwd", 0)
    if reason:
        pytest.skip(reason)
    errors = evaluate(contender.build(even), even, solve(even, with_grads=False))
    assert faults(errors, contender.bounds or BOUNDS[even.dtype]) == []


def test_a_wheel_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explodes"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    assert serving._folder("explodes") == package
    assert serving._folder("no_such_package") is None


def test_saved_bytes_counts_storages_once_and_leaves_inputs_out(problem: Problem) -> None:
    itemsize = problem.x.element_size()

    def layer(x: Tensor) -> Tensor:
        hidden = F.linear(x, problem.w_router)  # saves x and w_router: given
        act = hidden.sigmoid()  # saves its result
        return act * act[:, :]  # saves it twice again, once as a view

    assert saved_bytes(layer, problem) == TINY.num_tokens * TINY.num_experts * itemsize


def test_peak_bytes_counts_results_scratch_and_what_is_kept() -> None:
    kept: list[Tensor] = []

    def step(scratch: int, result: int, keep: int = 0) -> object:
        if not kept and keep:
            kept.append(torch.ones(keep << 18))
        temporary = torch.ones(scratch << 18)  # MiB of float32
        temporary.add_(1)
        return torch.ones(result << 18)

    if peak_bytes(lambda: None) is None:
        pytest.skip("this system does not tell how large the process was at its largest")
    mebibyte = 1 << 20
    assert peak_bytes(lambda: step(64, 0)) == pytest.approx(64 * mebibyte, abs=6 * mebibyte)
    assert peak_bytes(lambda: step(32, 64)) == pytest.approx(96 * mebibyte, abs=6 * mebibyte)
    assert peak_bytes(lambda: step(16, 0, keep=32)) == pytest.approx(48 * mebibyte, abs=6 * mebibyte)


def test_bytes_kept_by_packing_are_those_of_the_copy(problem: Problem) -> None:
    def build() -> Layer:
        packed = torch.ones(40 << 18)
        return lambda x: x * packed[0]

    _, kept = bytes_kept_by(build)
    if kept is None:
        pytest.skip("this system does not tell how large the process is")
    assert kept == pytest.approx(40 << 20, abs=6 << 20)


def test_rounds_are_paired_and_every_step_runs_once_in_each() -> None:
    calls: list[str] = []
    seconds = time_interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=6)
    rounds = len(seconds["a"])
    assert 6 <= rounds <= 60
    assert {len(sample) for sample in seconds.values()} == {rounds}
    timed = calls[-3 * rounds :]
    per_round = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in per_round)
    assert len(set(per_round)) > 1


def _outcome(name: str, seconds: list[float], ours: bool = False, weights: str = "plain") -> Outcome:
    return Outcome(name, ours, "ok", weights=weights, seconds=seconds)


def test_ratio_is_of_times_of_the_same_round() -> None:
    cell = Cell({"name": "x"}, "fp32", "fwd", 1, {}, 1, 1, {}, {})
    cell.outcomes = [
        _outcome("moe_ext", [1.0, 10.0, 2.0], ours=True),
        _outcome("moe_ext_recompute", [0.1, 0.1, 0.1], ours=True),
        _outcome("slow", [9.0, 90.0, 18.0]),
        _outcome("best", [3.0, 30.0, 2.0]),
    ]
    compared = cell.compared()
    assert compared.best_other is cell.outcomes[3]
    assert compared.ratio is not None
    assert (compared.ratio.median, compared.ratio.minimum) == (3.0, 1.0)


def test_contenders_are_compared_on_weights_of_the_same_kind() -> None:
    cell = Cell({"name": "x"}, "bf16", "fwd", 1, {}, 1, 1, {}, {})
    cell.outcomes = [
        _outcome("moe_ext", [4.0, 4.0], ours=True),
        _outcome("moe_ext_packed", [2.0, 2.0], ours=True, weights="packed"),
        _outcome("plain", [8.0, 8.0]),
        _outcome("packed", [3.0, 3.0], weights="packed"),
        _outcome("rounded", [1.0, 1.0], weights="int8"),
    ]
    found = {
        c.weights: (c.best_other.contender if c.best_other else None, c.ratio.median if c.ratio else None)
        for c in cell.comparisons
    }
    assert found == {"plain": ("plain", 2.0), "packed": ("packed", 1.5), "int8": ("rounded", None)}


def test_summaries_are_geometric_means_of_the_lowest_ratios() -> None:
    def cell(name: str, other: float) -> Cell:
        made = Cell({"name": name}, "bf16", "fwd", 1, {}, 1, 1, {}, {})
        made.outcomes = [_outcome("moe_ext", [1.0], ours=True), _outcome("slow", [other])]
        return made

    (line,) = summaries([[cell("a", 2.0), cell("a", 3.0)], [cell("b", 9.0), cell("b", 8.0)]])
    assert "slow 4.00× (least 2.00×, a)" in line


def test_unknown_shape_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dsv2lite"):
        find_shape("nope")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run --output /home/me/a-b/c.json", "run --output c.json"),
        ("-I/usr/lib/x.so -O3 'cannot open /x.so: 1/2, [32/4]'", "-Ix.so -O3 'cannot open x.so: 1/2, [32/4]'"),
        ("bench/results/x.json, https://a.b/c", "bench/results/x.json, https://a.b/c"),
    ],
)
def test_folders_stay_out_of_results(text: str, shown: str) -> None:
    assert without_folders(text) == shown
