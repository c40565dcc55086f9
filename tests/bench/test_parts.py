"""`python -m bench parts`: what is right, and the command from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import cli
from bench.parts.command import PartsReport
from bench.parts.contenders import ENTRIES
from bench.parts.work import PARTS, Sizes, Tensors, tolerance


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def tensors(request: pytest.FixtureRequest) -> Tensors:
    return Tensors(Sizes(64, 32, 4, 48), request.param)


@pytest.mark.parametrize("name", PARTS)
def test_everybody_is_right(tensors: Tensors, name: str) -> None:
    for contender, _, missing, build in ENTRIES[name]:
        if not missing():
            assert PARTS[name].check(tensors, build(tensors)()) <= tolerance(tensors), contender


def test_wrong_results_are_seen(tensors: Tensors) -> None:
    def plain(name: str) -> object:
        return next(build for contender, _, _, build in ENTRIES[name] if contender == "torch")(tensors)()

    topk_weights, topk_ids, grad = plain("route softmax fwdbwd")
    check = PARTS["route softmax fwdbwd"].check
    worst = tensors.logits.argmin(-1, keepdim=True)
    assert check(tensors, (topk_weights * 1.1, topk_ids, grad)) > tolerance(tensors)
    assert check(tensors, (topk_weights, topk_ids, grad.roll(1, 0))) > tolerance(tensors)
    assert check(tensors, (topk_weights, torch.cat((topk_ids[:, :-1], worst), 1), grad)) > tolerance(tensors)
    offsets, row_to_slot, slot_to_row = plain("permute")
    assert PARTS["permute"].check(tensors, (offsets, row_to_slot.flip(0), slot_to_row)) == 1
    assert PARTS["gather_rows"].check(tensors, plain("gather_rows").flip(0)) == 1


def test_bytes_are_what_must_be_read_and_written() -> None:
    sizes = Sizes(num_tokens=2, num_experts=8, top_k=3, hidden_size=5)
    expected = {
        "route softmax": 2 * (8 * 2 + 3 * 8),
        "route softmax fwdbwd": 2 * (3 * 8 * 2 + 2 * 3 * 8),
        "permute": 4 * (2 * 3 * 3 + 9),
        "gather_rows": 2 * (4 * 5 * 2 + 3 * 4),
        "combine": 2 * (4 * 5 * 2 + 3 * 8),
    }
    assert {name: PARTS[name].num_bytes(sizes, 2) for name in expected} == expected


def test_command_times_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "parts.json"
    command = ["parts", "--quick", "--tokens", "16", "--experts", "16", "--top-k", "2", "--hidden", "32"]
    chosen = ["route softmax", "permute", "combine"]
    command += ["--parts", *chosen, "--dtypes", "bf16", "--repeats", "1", "--threads", "1", "--output", str(path)]
    try:
        assert cli.main(command) == 0
    finally:
        torch.set_num_threads(threads)
    report = PartsReport.load(path)
    assert [cell.part for cell in report.cells] == chosen
    for cell in report.cells:
        assert cell.floor_seconds == pytest.approx(cell.num_bytes / report.limits["bytes_per_second"])
        assert all(o.status == "skipped" or (o.status == "ok" and o.seconds) for o in cell.outcomes)
    capsys.readouterr()
    assert cli.main(["table", str(path)]) == 0
    assert "torch_index_add" in capsys.readouterr().out
    assert cli.main(["plot", str(path)]) == 2
