"""`python -m bench` from end to end on the tiny shape: run, table, plot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import cli, report
from bench.contender import exclusion
from bench.contenders import CONTENDERS
from bench.machine import REPOSITORY, TUNED_MALLOC
from bench.mallocs import BothMallocs
from bench.problem import make_problem
from bench.restart import restart_with
from bench.results import Cell, Report
from bench.runner import DTYPES
from bench.shapes import TINY


@pytest.fixture(scope="module", autouse=True)
def keep_num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def result_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.json"
    assert cli.main(["run", "--quick", "--repeats", "5", "--threads", "1", "--output", str(path)]) == 0
    return path


@pytest.fixture
def with_moe_ext(result_file: Path, tmp_path: Path) -> Path:
    """The result file with times for moe_ext, whether it is installed or not: half of torch_loop's."""
    run = Report.load(result_file)
    for cell in run.cells:
        loop = next(o for o in cell.outcomes if o.contender == "torch_loop")
        for outcome in cell.outcomes:
            if outcome.contender == "moe_ext":
                outcome.status, outcome.reason, outcome.errors = "ok", None, loop.errors
                outcome.seconds, outcome.saved_bytes = [s / 2 for s in loop.seconds], 1 << 20
            elif outcome is not loop:
                outcome.status, outcome.seconds = "skipped", []
    path = tmp_path / "with.json"
    run.save(path)
    return path


def _cell(run: Report, key: str) -> Cell:
    return next(cell for cell in run.cells if cell.key == key)


def test_module_entry_point_lists_contenders_but_not_the_tiny_shape() -> None:
    command = [sys.executable, "-m", "bench", "run", "--help"]
    text = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(name in text for name in CONTENDERS)
    assert "decode16 T=16" in " ".join(text.split())
    assert "tiny T=" not in text


def test_run_covers_every_cell_and_contender(result_file: Path) -> None:
    run = Report.load(result_file)
    assert [cell.key for cell in run.cells] == [
        "tiny/bf16/fwd",
        "tiny/bf16/fwdbwd",
        "tiny/fp32/fwd",
        "tiny/fp32/fwdbwd",
    ]
    expected = [name for name, contender in CONTENDERS.items() if contender.default]
    for cell in run.cells:
        assert [outcome.contender for outcome in cell.outcomes] == expected
        for outcome in cell.outcomes:
            problem = make_problem(TINY, DTYPES[cell.dtype])
            reason = exclusion(CONTENDERS[outcome.contender], problem, cell.mode, 4 << 30)
            assert (outcome.status, outcome.reason) == (("skipped", reason) if reason else ("ok", None))
            if outcome.status == "ok":
                assert len(outcome.seconds) >= 5
                assert min(outcome.seconds) > 0
                names = {"y"} | (
                    {f"grad {n}" for n in ("x", "w_router", "w_gate_up", "w_down")} if cell.mode != "fwd" else set()
                )
                assert set(outcome.errors) == names
                assert (outcome.saved_bytes is None) == (cell.mode == "fwd")


def test_result_file_says_what_ran_where(result_file: Path) -> None:
    content = json.loads(result_file.read_text())
    assert content["threads"] == 1
    assert content["machine"]["cpu"]
    assert "malloc_tuned" in content["machine"]
    assert content["versions"]["torch"] == torch.__version__
    assert set(content["limits"]["flops_per_second"]) >= {"bf16", "fp32"}
    assert content["command"].startswith("python -m bench run --quick")
    cell = content["cells"][0]
    assert cell["flops"] == 2 * 48 * (2 * 3 * 64 * 48 + 8 * 64)
    assert cell["compulsory_bytes"]["plain"] == 2 * (8 * 3 * 64 * 48 + 8 * 64 + 2 * 48 * 64)
    assert cell["compulsory_bytes"]["int8"] == 8 * 3 * 64 * 48 + 2 * (8 * 64 + 2 * 48 * 64)
    assert all(floor["seconds"] > 0 and floor["limit"] in ("flop", "memory") for floor in cell["floors"].values())


def test_a_saved_report_loads_as_it_was(result_file: Path, tmp_path: Path) -> None:
    run = Report.load(result_file)
    run.save(tmp_path / "again.json")
    assert Report.load(tmp_path / "again.json") == run


def test_terminal_table_has_a_row_for_each_cell(with_moe_ext: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", str(with_moe_ext)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("tiny")]
    assert len(lines) == 4
    assert all("2.00× (2.00–2.00)" in line and "torch_loop" in line for line in lines)


def test_update_replaces_only_the_block(with_moe_ext: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        assert cli.main(["table", str(with_moe_ext), "--update", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{report.START}\n**")
        assert text.endswith(f"\n{report.END}\nafter\n")
        assert "old" not in text
        assert text.count("| tiny |") == 4
        assert {line.count("|") for line in text.splitlines() if line.startswith("| ")} == {len(report.HEADINGS) + 1}
        assert text.count("**2.00× (2.00–2.00)**") == 4


def test_update_without_markers_leaves_the_file_alone(with_moe_ext: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no block here\n")
    assert cli.main(["table", str(with_moe_ext), "--update", str(readme)]) == 2
    assert readme.read_text() == "no block here\n"


def test_plot_writes_a_picture(with_moe_ext: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plot.png"
    assert cli.main(["plot", str(with_moe_ext), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_roofline_writes_a_picture(with_moe_ext: Path) -> None:
    assert cli.main(["plot", str(with_moe_ext), "--roofline"]) == 0
    assert with_moe_ext.with_name("with-roofline.png").read_bytes().startswith(b"\x89PNG")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert cli.main(["table", str(path)]) == 2


def test_a_run_that_needs_another_environment_starts_over_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        assert (path, argv[:3]) == (sys.executable, [sys.executable, "-m", "bench"])
        started.append(environment)
        raise OSError("would be gone now")

    monkeypatch.setattr("os.execve", execve)
    assert cli.main(["run", "--quick", "--isa", "avx2", "--tuned-malloc"]) == 2
    needed = {"MOE_EXT_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    needed |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "GLIBC_TUNABLES": TUNED_MALLOC}
    assert started[0].items() >= needed.items()
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    restart_with(needed, [])
    assert len(started) == 1


def test_fewer_than_five_repeats_are_refused() -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--repeats", "4"])


def test_of_two_runs_the_lower_ratio_counts(
    with_moe_ext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default, tuned = Report.load(with_moe_ext), Report.load(with_moe_ext)
    quicker = next(o for o in tuned.cells[1].outcomes if o.contender == "torch_loop")
    quicker.seconds = [s * 0.75 for s in quicker.seconds]
    path = tmp_path / "both.json"
    BothMallocs(default, tuned).save(path)
    both = BothMallocs.load(path)
    ratios = [chosen.ratio.median for _, chosen, _ in both.chosen() if chosen.ratio]
    assert ratios == pytest.approx([2.0, 1.5, 2.0, 2.0])
    assert json.loads(path.read_text())["lower_ratios"]["tiny/bf16/fwdbwd/plain"] == pytest.approx(1.5)
    assert cli.main(["table", str(path), "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(report.HEADINGS) + 3}
    assert "**1.50× (1.50–1.50)** | 2.00× torch_loop | 1.50× torch_loop |" in lines[1]
    assert cli.main(["plot", str(path)]) == 0
    assert path.with_suffix(".png").exists()


def test_both_mallocs_runs_two_processes(with_moe_ext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        Path(command[-1]).write_text(with_moe_ext.read_text())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("bench.mallocs.subprocess.run", pretend)
    path = tmp_path / "both.json"
    assert cli.main(["run", "--both-mallocs", "--quick", "--output", str(path)]) == 0
    assert ["--tuned-malloc" in command for command in commands] == [False, True]
    assert all("--both-mallocs" not in command for command in commands)
    assert sorted(file.name for file in tmp_path.glob("both*")) == ["both.json"]
    both = BothMallocs.load(path)
    assert both.default.limits == both.tuned.limits
    assert [cell.floors for cell in both.default.cells] == [cell.floors for cell in both.tuned.cells]
    assert cli.main(["run", "--both-mallocs", "--tuned-malloc"]) == 2
