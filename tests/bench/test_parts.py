"""`python -m bench parts`: what is right, and the command from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cli
from bench.parts.command import PartsReport
from bench.parts.table import ENTRIES, PARTS
from bench.parts.work import Sizes, Tensors, tolerance


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


def test_wrong_assignments_are_seen(tensors: Tensors) -> None:
    def plain(name: str) -> Any:
        return next(build for _, is_ours, _, build in ENTRIES[name] if not is_ours)(tensors)()

    def is_wrong(name: str, result: object) -> bool:
        return not PARTS[name].check(tensors, result) <= tolerance(tensors)

    tokens = plain("expert_choice")
    assert is_wrong("expert_choice", tokens.roll(1, 0))
    assert is_wrong("expert_choice", torch.cat((tokens[:, :-1], tokens[:, :1]), 1))  # one of them twice
    assert is_wrong("sinkhorn", tensors.logits.detach().float().softmax(-1))
    assert is_wrong("auction", plain("auction").roll(1))
    weights, ids = plain("route_top_p")
    last = (ids >= 0).sum(1, keepdim=True) - 1
    assert is_wrong("route_top_p", (weights, ids.roll(1, 0)))
    assert is_wrong("route_top_p", (weights.scatter(1, last, 0.0), ids.scatter(1, last, -1)))  # stops too early
    positions, counts = plain("slot_positions")
    assert is_wrong("slot_positions", (positions.flip(0), counts))
    assert is_wrong("slot_positions", (positions, counts.flip(0)))
    assert is_wrong("slot_positions by priority", (positions, counts))
    assert is_wrong("expert_histogram", counts + 1)
    for kind in ("uniform", "normal", "gumbel"):
        assert is_wrong(f"noise {kind}", plain(f"noise {kind}") + 0.3)
        assert is_wrong(f"noise {kind}", plain(f"noise {kind}")[:-1])


def test_bytes_are_what_must_be_read_and_written() -> None:
    sizes = Sizes(num_tokens=2, num_experts=8, top_k=3, hidden_size=5)
    expected = {
        "route softmax": 2 * (8 * 2 + 3 * 8),
        "route softmax fwdbwd": 2 * (3 * 8 * 2 + 2 * 3 * 8),
        "permute": 4 * (2 * 3 * 3 + 9),
        "gather_rows": 2 * (4 * 5 * 2 + 3 * 4),
        "combine": 2 * (4 * 5 * 2 + 3 * 8),
        "expert_choice": 4 * (2 * 2 * 8 + 8),
        "sinkhorn": 2 * 4 * 2 * 8,
        "auction": 4 * (2 * 8 + 2),
        "route_top_p": 2 * 8 * (2 + 8),
        "slot_positions": 4 * (2 * 2 * 3 + 8),
        "slot_positions by priority": 4 * (2 * 2 * 3 + 8 + 2),
        "expert_histogram": 4 * (2 * 3 + 8),
        "noise normal": 4 * 2 * 8,
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
