"""How many slots an expert takes, by every convention."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.routing import Capacity, dynamic_capacity, expert_capacity
from moe_ext.routing.capacity_rules import RULES
from tests.routing.capacity_cases import TOP2_IDS


@pytest.mark.parametrize(
    ("rule", "top_k", "options", "expected"),
    [
        ("switch", 1, {"factor": 1.25}, 3),
        ("switch_ceil", 1, {"factor": 1.25}, 4),
        ("gshard", 2, {}, 5),
        ("fairseq", 1, {"factor": 1.25}, 3),
        ("fairseq", 2, {}, 6),
        ("fairseq_eval", 2, {}, 3),
        ("deepspeed", 1, {"factor": 1.25}, 4),
        ("deepspeed", 2, {"factor": 1.25}, 7),
        ("megatron", 2, {"factor": 1.25}, 7),
        ("vmoe", 2, {"factor": 1.25}, 8),
        ("vmoe_round", 2, {"factor": 1.25}, 6),
        ("expert_choice", 1, {}, 5),
    ],
)
def test_worked_example(rule: str, top_k: int, options: dict[str, float], expected: int) -> None:
    """Ten tokens, four experts."""
    assert expert_capacity(10, 4, top_k, rule=rule, **options) == expected


def test_switch_figure() -> None:
    """Six tokens and three experts with counts (3, 2, 1): one is dropped at factor 1, none at 1.5."""
    assert [expert_capacity(6, 3, rule="switch", factor=factor) for factor in (1.0, 1.5)] == [2, 3]


def test_the_factor_is_the_decimal_that_was_written() -> None:
    assert math.ceil(100 * 0.07) == 8
    assert expert_capacity(10, 1, 2, rule="megatron", factor=0.55) == 10
    assert expert_capacity(10, 1, 1, rule="switch_ceil", factor=0.3) == 3
    assert expert_capacity(100, 1, 1, rule="switch_ceil", factor=0.07) == 7
    assert expert_capacity(6, 4, 1, rule="expert_choice", factor=4 / 3) == 2


def test_at_least_the_minimum_and_at_most_all_tokens() -> None:
    assert expert_capacity(1, 64, 2) == 1
    assert expert_capacity(8, 64, 1, rule="deepspeed") == 4
    assert expert_capacity(3, 64, 1, rule="deepspeed") == 3
    assert expert_capacity(100, 64, 1, rule="megatron", minimum=16) == 16
    assert expert_capacity(10, 2, 2, rule="megatron", factor=100) == 10
    assert expert_capacity(0, 4) == 0


def test_a_capacity_below_one_is_raised_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="below 1 is raised to 1"):
        assert expert_capacity(8, 64, 1, rule="vmoe_round", factor=0.1) == 1


@pytest.mark.filterwarnings("ignore:moe_ext.routing.expert_capacity")
@given(
    rule=st.sampled_from(sorted(RULES)),
    num_tokens=st.integers(0, 300),
    num_experts=st.integers(1, 40),
    top_k=st.integers(1, 4),
)
def test_more_tokens_never_mean_less_room(rule: str, num_tokens: int, num_experts: int, top_k: int) -> None:
    sizes = [expert_capacity(n, num_experts, top_k, rule=rule) for n in (num_tokens, num_tokens + 1)]
    assert 0 <= sizes[0] <= num_tokens
    assert sizes[0] <= sizes[1]


def test_dynamic_capacity_follows_the_load() -> None:
    ids = torch.tensor(TOP2_IDS, dtype=torch.int32)  # counts 5, 4, 2, 1
    assert int(dynamic_capacity(ids, 4)) == 5
    assert int(dynamic_capacity(ids, 4, factor=-1.0)) == 3
    assert int(dynamic_capacity(ids, 4, factor=-2.0)) == 5
    assert int(dynamic_capacity(ids, 4, factor=2.0)) == 6
    assert int(dynamic_capacity(ids, 4, group_size=3)) == 3
    assert int(dynamic_capacity(ids[:0], 4, group_size=3)) == 0
    assert dynamic_capacity(ids, 4).dtype == torch.int32


def _largest_of_ranks(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    # Largest loads of 1 and 3; a rank without tokens takes part.
    ids = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [0, 2], [0, 3]]][rank], dtype=torch.int32)
    assert int(dynamic_capacity(ids, 4, process_group=dist.group.WORLD)) == 3, rank
    assert int(dynamic_capacity(ids[: 3 * rank], 4, group_size=2, process_group=dist.group.WORLD)) == 2, rank
    stage = Capacity(4, rule="dynamic", process_group=dist.group.WORLD)
    assert int(stage.capacity(ids)) == 3, rank
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_the_largest_capacity(tmp_path: Path) -> None:
    mp.spawn(_largest_of_ranks, (str(tmp_path / "store"),), nprocs=2)


def test_agreement_compiles() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:

        def agreed(ids: torch.Tensor) -> torch.Tensor:
            return dynamic_capacity(ids, 4, process_group=dist.group.WORLD)

        ids = torch.tensor(TOP2_IDS, dtype=torch.int32)
        assert int(torch.compile(agreed, fullgraph=True, backend="aot_eager")(ids)) == 5
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": "tutel"}, ValueError, 'rule must be one of "switch"'),
        ({"factor": -1.0}, ValueError, "factor must be at least 0.0, got -1.0"),
        ({"factor": math.nan}, ValueError, "factor must be finite"),
        ({"minimum": 1.5}, TypeError, "minimum must be an int, got float"),
        ({"num_experts": 0}, ValueError, "num_experts must be at least 1, got 0"),
        ({"num_tokens": -1}, ValueError, "num_tokens must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        expert_capacity(**{"num_tokens": 4, "num_experts": 2, **options})  # type: ignore[arg-type]
