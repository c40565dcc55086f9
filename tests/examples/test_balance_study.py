"""The study of balancing, tiny: five methods from one collapsed router, numbers and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "".join(f"{n} times 3 is {3 * n}; " for n in range(400))


@pytest.fixture(autouse=True)
def importable_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_every_method_leaves_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    import balance_study

    (tmp_path / "text").write_text(TEXT)
    sizes = [
        "--hidden",
        "32",
        "--experts",
        "8",
        "--context",
        "32",
        "--batch",
        "2",
        "--steps",
        "40",
        "--bias-rate",
        "0.2",
    ]
    assert balance_study.main(["--text", str(tmp_path / "text"), "--output", str(tmp_path / "out"), *sizes]) == 0
    runs = json.loads((tmp_path / "out" / "balance.json").read_text())["runs"]
    assert set(runs) == set(balance_study.METHODS)
    for method, run in runs.items():
        assert len(run["bits"]) == len(run["max_violation"]) == 40
        assert run["bits"][-1] < run["bits"][0], method
    # Top 2 of 8, all of it on two experts: four times an even share.
    assert runs["none"]["max_violation"][0] > 2.5
    assert runs["bias"]["max_violation"][-1] < runs["none"]["max_violation"][-1]
    assert max(runs["expert-choice"]["max_violation"]) == 0
    assert (tmp_path / "out" / "balance.png").read_bytes().startswith(b"\x89PNG")
    assert "expert-choice" in capsys.readouterr().out


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import balance_study

    assert balance_study.main(["--text", str(tmp_path / "nothing")]) == 2
    assert "error" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        balance_study.parse_args(["--steps", "0"])
