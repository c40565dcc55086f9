"""`python -m bench limits`, and what `run` makes of limits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench import cli
from bench.limits import floor, library
from bench.limits.floor import Limits, allowed_units, measure_limits
from bench.limits.library import Kernels, NoKernels, load
from bench.limits.measure import MachineLimits, working_sets


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    try:
        return load()
    except NoKernels as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def limits_file(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limits") / "limits.json"
    assert cli.main(["limits", "--quick", "--threads", "1", "2", "--output", str(path)]) == 0
    return path


def test_every_unit_and_way_is_measured_on_every_number_of_threads(limits_file: Path, kernels: Kernels) -> None:
    result = MachineLimits.load(limits_file)
    assert {(p.unit, p.threads) for p in result.peaks} == {(unit, n) for unit in kernels.units for n in (1, 2)}
    assert {(b.way, b.threads) for b in result.bandwidths} == {(way, n) for way in kernels.ways for n in (1, 2)}
    assert {(f.pages, f.threads) for f in result.first_touches} == {(p, n) for p in ("4 KiB", "huge") for n in (1, 2)}
    sizes = {b.bytes_per_thread for b in result.bandwidths if b.way == "read, 8 streams"}
    assert sizes == set(working_sets(2, quick=True))
    # No CPU of this kind is slower, none a thousand times quicker: what would show is work that was optimised away.
    assert all(1e9 < p.operations_per_second < 1e14 for p in result.peaks)
    assert all(1e8 < b.bytes_per_second < 1e13 for b in result.bandwidths)


def test_table_and_plot_know_the_file(limits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert limits_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["table", str(limits_file)]) == 0
    assert "read, 8 streams, 16 KiB" in capsys.readouterr().out
    assert cli.main(["table", str(limits_file), "--markdown"]) == 2
    assert cli.main(["plot", str(limits_file), "--output", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").exists()


def test_working_sets_are_powers_of_two_up_to_half_a_gibibyte() -> None:
    sizes = working_sets(1, quick=False)
    assert sizes[0] == 16 << 10
    assert sizes[-1] <= 512 << 20
    assert all(b == 2 * a for a, b in pairwise(sizes))


def test_wide_units_have_higher_peaks(kernels: Kernels) -> None:
    # 32 times as many operations in an instruction: far above what a busy machine can hide.
    if "amx bf16" not in kernels.units:
        pytest.skip("no AMX")
    assert kernels.peak("amx bf16", 1, 0.01) > 3 * kernels.peak("avx2 fp32", 1, 0.01)


def test_a_pinned_instruction_set_has_the_units_of_its_own() -> None:
    present = ["avx2 fp32", "avx512 fp32", "avx512 bf16", "amx bf16"]
    assert allowed_units("bf16", None, present) == present
    assert allowed_units("bf16", "avx512", present) == ["avx2 fp32", "avx512 fp32"]
    assert allowed_units("fp32", "avx2", present) == ["avx2 fp32"]
    assert allowed_units("int8", "amx", ["avx2 fp32"]) == ["avx2 fp32"]


def test_the_floor_is_the_larger_of_arithmetic_and_memory() -> None:
    limits = Limits({"bf16": 100.0}, {"bf16": "unit"}, 10.0, "way", None)
    assert limits.floor("bf16", 200, 10) == floor.Floor(2.0, "flop")
    assert limits.floor("bf16", 200, 40) == floor.Floor(4.0, "memory")
    assert limits.floor("int8", 10**9, 40) == floor.Floor(4.0, "memory")
    quicker = Limits({"bf16": 150.0}, {"bf16": "other"}, 5.0, "worse", None)
    best = limits.best_of(quicker)
    assert (best.flops_per_second, best.flops_measured_with) == ({"bf16": 150.0}, {"bf16": "other"})
    assert (best.bytes_per_second, best.bytes_measured_with) == (10.0, "way")


def test_without_a_compiler_pytorch_stands_in_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    with pytest.raises(NoKernels, match="there is no no-such-compiler"):
        library._compile(tmp_path)
    monkeypatch.setattr(floor, "load", lambda: library._compile(tmp_path))
    limits = measure_limits(1, quick=True)
    assert "no-such-compiler" in str(limits.why_not)
    assert set(limits.flops_per_second) == {"bf16", "fp32"}
    assert limits.bytes_measured_with.startswith("torch.sum")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ --no-such-flag")
    with pytest.raises(NoKernels, match="no-such-flag"):
        library._compile(tmp_path)
