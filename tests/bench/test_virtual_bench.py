"""`python -m bench virtual`: formulas by themselves, then both contenders on a tiny shape, then what is made of it."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import cli, report
from bench.check import TensorError
from bench.shapes import Shape
from bench.virtual import lines, work
from bench.virtual.counts import ChipRates, Counts, JobCounts, LaunchCounts
from bench.virtual.moe_ext_layer import library
from bench.virtual.report import MEASURES, job_rows, layer_row
from bench.virtual.results import Cell, Outcome, Report
from bench.virtual.shapes import SHAPES, TINY

SHAPE = Shape("any", num_tokens=48, hidden_size=96, intermediate_size=40, num_experts=6, top_k=3)
CHIP = ChipRates("chip", bytes_per_second=1e12, bf16_flops=1e14)


def _needs(module: str, reason: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{reason}: {error}")


@pytest.fixture
def virtual_gpu() -> None:
    _needs("emulator", "needs the virtual GPU, `make emulator`")


@pytest.fixture
def triton() -> None:
    _needs("triton", "needs the package triton")


@pytest.mark.parametrize("missed", [False, True])
def test_bytes_of_the_jobs_add_up_to_the_formulas(missed: bool) -> None:
    rows, tokens, hidden, inner = SHAPE.num_rows, SHAPE.num_tokens, SHAPE.hidden_size, SHAPE.intermediate_size
    rh, ri, th, w = 2 * rows * hidden, 2 * rows * inner, 2 * tokens * hidden, 2 * 3 * hidden * inner * 6
    gather = rh if missed else th
    expected = {
        "inference": 2 * rh + 2 * ri + th + gather + w,
        "forward": 2 * rh + 4 * ri + th + gather + w,
        "backward": 2 * rh + 10 * ri + th + 3 * gather + 2 * w,
    }
    for phase, num_bytes in expected.items():
        assert work.layer_bytes(SHAPE, phase, gathers_missed=missed) == num_bytes


def test_flops_of_the_jobs_are_those_of_the_layer() -> None:
    router = 2 * SHAPE.num_tokens * SHAPE.num_experts * SHAPE.hidden_size
    forward, backward = (
        sum(entry.flops for entry in work.jobs_of(SHAPE, phase).values()) for phase in ("forward", "backward")
    )
    assert forward == SHAPE.flops("fwd") - router
    assert backward == 2 * forward


def test_weights_of_idle_experts_are_not_read_but_their_gradients_are_written() -> None:
    matrix = 2 * SHAPE.hidden_size * SHAPE.intermediate_size
    for phase, matrices in (("inference", 3), ("backward", 3)):
        every, some = (work.jobs_of(SHAPE, phase, hit) for hit in (6, 4))
        saved = sum(every[job].num_bytes - some[job].num_bytes for job in every)
        assert saved == 2 * matrices * matrix


def test_jobs_are_named_in_the_order_of_their_phase() -> None:
    for phase in work.PHASES:
        assert tuple(work.jobs_of(SHAPE, phase)) == work.JOBS[phase]


def test_shapes_keep_the_rows_of_an_expert() -> None:
    for shape in SHAPES.values():
        rows = shape.shape.num_rows / shape.shape.num_experts
        assert rows == (4 if shape.name == "decode" else 256)


def _launch(kernel: str = "k", **counts: int) -> LaunchCounts:
    return LaunchCounts(kernel, (1, 1, 1), 128, 0, Counts(launches=1, **counts))


def test_the_floor_of_a_launch_is_the_larger_of_bytes_and_flops() -> None:
    memory = _launch(distinct_read=1 << 20, distinct_written=1 << 20, matrix_macs=1)
    matrix = _launch(distinct_read=1, matrix_macs=1 << 40)
    assert memory.counts.floor_seconds(CHIP) == 32 * (2 << 20) / 1e12
    assert matrix.counts.floor_seconds(CHIP) == 2 * (1 << 40) / 1e14
    job = JobCounts([memory, matrix])
    assert job.floor_seconds(CHIP) == memory.counts.floor_seconds(CHIP) + matrix.counts.floor_seconds(CHIP)
    assert job.total.launches == 2
    assert job.total.distinct_read == (1 << 20) + 1


def _record(*instructions: tuple[str, int, int]) -> SimpleNamespace:
    """A launch as the emulator tells of it: opcode, warp instructions and wavefronts beyond the ideal of each."""
    told = [
        SimpleNamespace(
            file="kernel.cu",
            line=line,
            opcode=opcode,
            counters=SimpleNamespace(
                warp_instructions=count,
                shared_wavefronts=2 * count + lost,
                shared_wavefronts_ideal=2 * count,
                global_sectors=count,
                global_sectors_ideal=count,
            ),
        )
        for line, (opcode, count, lost) in enumerate(instructions, start=1)
    ]
    totals = dict.fromkeys(("matrix_macs", "distinct_sectors_read", "distinct_sectors_written", "barriers"), 0)
    for field in vars(told[0].counters):
        totals[field] = sum(getattr(instruction.counters, field) for instruction in told)
    moves = sum(i.counters.warp_instructions for i in told if i.opcode.startswith("mov"))
    return SimpleNamespace(
        kernel="kernel",
        grid=(1, 1, 1),
        block=(32, 1, 1),
        static_shared_bytes=0,
        dynamic_shared_bytes=0,
        instructions=lambda: told,
        counters=SimpleNamespace(**totals, instructions_by_class={"move": moves}),
    )


def test_moves_and_polling_are_told_apart() -> None:
    record = _record(
        ("add.s32", 5, 0),
        ("mbarrier.try_wait.parity.shared.b64", 40, 0),
        ("setp.eq.s32", 40, 0),
        ("bra", 40, 0),
        ("mov.b32", 7, 0),
        ("bra", 3, 0),
    )
    counts = LaunchCounts.of(record).counts
    assert (counts.warp_instructions, counts.polls, counts.moves) == (135, 120, 7)
    assert counts.instructions == 5 + 3


def test_lines_that_lose_are_found() -> None:
    record = _record(("ld.shared.f32", 100, 30), ("st.shared.f32", 10, -5), ("add.s32", 500, 0))
    lost = {cost.line: cost.lost_wavefronts for cost in lines.costs([record, record])["kernel"]}
    assert lost == {1: 60, 2: 0, 3: 0}
    (table,) = lines.tables([record], count=1)
    assert table.row_count == 2  # the busiest, and the one that loses


def _job(scale: int) -> JobCounts:
    sectors = {"sectors": 100 * scale, "sectors_ideal": 100, "distinct_read": 40 * scale, "distinct_written": 20}
    return JobCounts([_launch(warp_instructions=10 * scale, matrix_macs=1000, **sectors)])


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A result file in which the yardstick needs twice the instructions and has no launches for permute."""
    cells = []
    for phase in work.PHASES:
        cell = Cell(CHIP, asdict(SHAPE), "a layer", "made small", phase, 24, work.jobs_of(SHAPE, phase), 10**6)
        errors = {"y": TensorError(1e-3, 2e-3)}
        ours = {job: _job(1) for job in cell.work}
        theirs = {job: _job(2) for job in cell.work if job not in (work.PERMUTE, work.RESTORE)}
        cell.outcomes = [
            Outcome("moe_ext", True, "ok", None, errors, ours),
            Outcome("triton", False, "ok", None, errors, theirs),
        ]
        cells.append(cell)
    path = tmp_path / "both.json"
    run = Report("2026-01-01T00:00:00+00:00", "python -m bench virtual", {}, {}, {"triton": "3"}, {}, cells)
    run.save(path)
    assert Report.load(path) == run
    return path


def test_a_layer_adds_up_the_jobs_that_both_have(both: Path) -> None:
    cell = Report.load(both).cells[0]
    assert cell.compared_jobs == [work.ROUTE, work.GATE_UP, work.DOWN, work.COMBINE]
    row = layer_row(cell)
    assert row.ours is not None
    assert row.ours.total.warp_instructions == 40
    assert MEASURES["instr."](row) == 2
    assert MEASURES["bytes"](row) == 100 / 60
    by_job = {row.job: row for row in job_rows(cell)}
    assert by_job[work.PERMUTE].other is None
    assert MEASURES["instr."](by_job[work.PERMUTE]) is None


def test_table_update_and_plot_know_the_format(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", str(both)]) == 0
    assert "chip/any/backward" in capsys.readouterr().out
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.START}\n{report.END}\nafter\n")
    assert cli.main(["table", str(both), "--update", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| chip | any | inference | 1.67 | 2.00 | 2.00 | 1.67 |" in text
    picture = tmp_path / "plot.png"
    assert cli.main(["plot", str(both), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("virtual_gpu", "triton")
@pytest.mark.parametrize("chip", ["A100", "H100"])
def test_the_yardstick_is_right_and_counted(tmp_path: Path, chip: str) -> None:
    path = tmp_path / "triton.json"
    command = ["--virtual", "--quick", "--checks", "--chips", chip, "--contenders", "triton", "--output", str(path)]
    assert cli.main(command) == 0
    run = Report.load(path)
    assert [cell.key for cell in run.cells] == [f"{chip}/tiny/{phase}" for phase in work.PHASES]
    for cell in run.cells:
        (outcome,) = cell.outcomes
        assert outcome.status == "ok"
        forward, backward = {"y", "topk_weights", "topk_ids"}, {"x", "w_router", "w_gate_up", "w_down"}
        assert set(outcome.errors) == (backward if cell.phase == "backward" else forward)
        for job, counted in outcome.jobs.items():
            # Nobody does less than the formula says.
            assert counted.total.distinct_bytes >= cell.work[job].num_bytes
            assert counted.total.flops >= cell.work[job].flops
            assert counted.total.wavefronts == counted.total.wavefronts_ideal
    assert json.loads(path.read_text())["command"].startswith("python -m bench")


@pytest.mark.usefixtures("virtual_gpu")
def test_moe_ext_is_right_and_counted(tmp_path: Path) -> None:
    if not library().is_file():
        pytest.skip(f"{library().name} is not built")
    path = tmp_path / "moe_ext.json"
    command = ["virtual", "--quick", "--checks", "--chips", "A100", "--contenders", "moe_ext", "--output", str(path)]
    assert cli.main(command) == 0
    for cell in Report.load(path).cells:
        (outcome,) = cell.outcomes
        assert outcome.status == "ok"
        assert set(outcome.jobs) == set(cell.work)
        assert all(job.total.launches for job in outcome.jobs.values())


@pytest.mark.usefixtures("virtual_gpu")
def test_a_missing_library_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_EXT_VIRTUAL_LIBRARY", str(tmp_path / "nowhere.so"))
    path = tmp_path / "none.json"
    command = ["virtual", "--quick", "--chips", "A100", "--contenders", "moe_ext", "--phases", "inference"]
    assert cli.main([*command, "--output", str(path)]) == 0
    (outcome,) = Report.load(path).cells[0].outcomes
    assert outcome.status == "skipped"
    assert outcome.reason is not None
    assert "nowhere.so does not exist" in outcome.reason


def test_tiny_is_in_no_default_run() -> None:
    assert TINY.name not in SHAPES
