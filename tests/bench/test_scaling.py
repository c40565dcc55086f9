"""`python -m bench scaling`: what counts as a cliff, and the command from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import cli
from bench.scaling import ALLOWED_EXCESS, Scaling, excesses

_FLAT = [1.0] * 14


def _times(slope_of: list[float]) -> list[float]:
    times = [1.0]
    for step in slope_of:
        times.append(times[-1] * step)
    return times


def test_a_curve_that_bends_is_smooth() -> None:
    # Proportional while experts are hit one by one, flat while they fill, proportional again.
    steps = [2.0, 1.95, 1.8, 1.5, 1.2, 1.1, 1.1, 1.2, 1.4, 1.7, 1.9, 2.0, 2.0]
    assert max(excesses(_times(steps), _FLAT)) < 1.3


def test_a_step_of_the_work_itself_is_no_cliff() -> None:
    steps = [2.0, 1.0, 1.0, 1.0, 2.0]
    assert max(excesses(_times(steps), [1.0] * 6)) == pytest.approx(2.0)
    assert max(excesses(_times(steps), _times([1.8, 1.0, 1.0, 1.0, 1.9]))) < 1.2


@pytest.mark.parametrize("place", [0, 1, 5, 10, 11])
def test_a_jump_that_stays_is_found_where_it_is(place: int) -> None:
    steps = [2.0] * 12
    steps[place] *= 1.8
    found = excesses(_times(steps), _FLAT[:13])
    assert found.index(max(found)) == place
    assert found[place] == pytest.approx(1.8)


@pytest.mark.parametrize("place", [1, 6, 11])
def test_one_slow_point_is_found(place: int) -> None:
    times = _times([2.0] * 12)
    times[place] *= 1.6
    assert max(excesses(times, _FLAT[:13])) > ALLOWED_EXCESS


def test_two_sizes_are_no_curve() -> None:
    with pytest.raises(ValueError, match="three sizes"):
        excesses([1.0, 2.0], [1.0, 1.0])


def test_command_writes_series_verdicts_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "scaling.json"
    command = ["scaling", "--quick", "--contender", "torch_loop", "--layer", "32", "16", "2", "--tokens", "1", "2", "4"]
    command += ["--experts", "2", "4", "8", "--at-tokens", "4", "--at-experts", "4", "--repeats", "1", "--threads", "1"]
    try:
        status = cli.main([*command, "--output", str(path)])
    finally:
        torch.set_num_threads(threads)
    result = Scaling.load(path)
    assert status == (0 if result.smooth else 1)
    assert [(s.axis, s.mode, s.sizes) for s in result.series] == [
        ("tokens", "fwd", [1, 2, 4]),
        ("tokens", "fwdbwd", [1, 2, 4]),
        ("experts", "fwd", [2, 4, 8]),
        ("experts", "fwdbwd", [2, 4, 8]),
    ]
    assert all(len(s.excesses) == 2 and min(s.floor_seconds) > 0 for s in result.series)
    assert path.with_suffix(".png").exists()
    capsys.readouterr()
    assert cli.main(["table", str(path)]) == 0
    assert "step over smooth" in capsys.readouterr().out


def test_fewer_experts_than_a_token_takes_are_refused() -> None:
    command = ["scaling", "--contender", "torch_loop", "--experts", "4", "8", "16"]
    assert cli.main(command) == 2
