"""DeepSeek-V2's limit on the load of a device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.ops.types import Routing
from moe_ext.routing import DeviceCapacity, limit_device_load, protect_sequences
from tests.routing.capacity_cases import LOGITS, routings, top2


def dropped(routing: Routing, before: Routing) -> list[tuple[int, int]]:
    return (routing.topk_ids != before.topk_ids).nonzero().tolist()


def test_worked_example() -> None:
    """Experts 0 and 1 have nine slots, 2 and 3 have three; with a budget of six each, three of the nine go: those of
    probability 0.2369 (token 5), 0.2245 (token 4) and 0.1524 (token 2), all of them at expert 0."""
    routing = top2(renormalize=False)
    limited = limit_device_load(routing, 4, 2)
    assert dropped(limited, routing) == [[2, 1], [4, 1], [5, 1]]
    assert limited.topk_ids[[2, 4, 5], 1].tolist() == [-1, -1, -1]
    affinity = torch.softmax(LOGITS, 1).gather(1, routing.topk_ids.long())
    assert dropped(limit_device_load(top2(), 4, 2, affinity=affinity), top2()) == [[2, 1], [4, 1], [5, 1]]


def test_protected_tokens_count_but_stay() -> None:
    routing = top2(renormalize=False)
    protected = torch.tensor([False, False, True, False, True, False])
    limited = limit_device_load(routing, 4, 2, protected=protected)
    # Without tokens 2 and 4 the next two in line go: token 0 at expert 1 (0.2369), and token 1 or 5 at expert 1.
    assert len(dropped(limited, routing)) == 3
    assert torch.equal(limited.topk_ids[protected], routing.topk_ids[protected])


@given(drawn=routings(), factor=st.sampled_from([0.0, 0.5, 1.0, 1.3]), protect=st.integers(0, 2**9 - 1))
def test_the_lowest_go_until_the_budget_is_met(drawn: tuple[Routing, int], factor: float, protect: int) -> None:
    routing, num_experts = drawn
    protected = torch.tensor([bool(protect >> t & 1) for t in range(routing.topk_ids.shape[0])], dtype=torch.bool)
    limited = limit_device_load(routing, num_experts, num_experts, factor=factor, protected=protected)
    budget = int((routing.topk_ids >= 0).sum()) * round(factor * 10) // (10 * num_experts)
    for device in range(num_experts):
        of_device = routing.topk_ids == device
        kept = (limited.topk_ids == device) & of_device
        safe = of_device & protected.unsqueeze(1)
        assert int(kept.sum()) == min(int(of_device.sum()), max(budget, int(safe.sum())))
        assert bool((kept | ~safe).all())
        lost, stayed = routing.topk_weights[of_device & ~kept], routing.topk_weights[kept & ~safe]
        assert not lost.numel() or not stayed.numel() or float(lost.max()) <= float(stayed.min())


def test_one_graph_for_any_length() -> None:
    stage = DeviceCapacity(4, 2, factor=0.7, protect_rate=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_tokens in (6, 11):
        routing = Routing(torch.rand(num_tokens, 2), torch.randint(4, (num_tokens, 2), dtype=torch.int32))
        assert torch.equal(compiled(routing).topk_ids, stage(routing).topk_ids)


def test_a_factor_of_many_digits() -> None:
    """A third and a product of decimals as numerators over 10^16 would exceed int64 with a few hundred slots."""
    ids = (torch.arange(600) % 4).reshape(300, 2).int()
    routing = Routing(torch.ones(300, 2), ids)
    for factor in (4 / 3, 1.1 * 1.1):
        assert dropped(limit_device_load(routing, 4, 2, factor=factor), routing) == []
    assert len(dropped(limit_device_load(routing, 4, 2, factor=2 / 3), routing)) == 200


def test_only_training_drops() -> None:
    stage, routing = DeviceCapacity(4, 2, protect_rate=0.0), top2(renormalize=False)
    assert dropped(stage(routing), routing) == [[2, 1], [4, 1], [5, 1]]
    assert dropped(stage(routing, training=False), routing) == []
    assert dropped(stage.eval()(routing), routing) == []
    everybody = DeviceCapacity(4, 2, protect_rate=1.0)
    assert dropped(everybody(routing, num_sequences=3), routing) == []


def test_sequences_are_protected_as_a_whole() -> None:
    chosen = protect_sequences(4000, 1000, rate=0.1, seed=torch.tensor([5])).view(1000, 4)
    assert torch.equal(chosen, chosen[:, :1].expand(-1, 4))
    assert 0.07 < float(chosen[:, 0].double().mean()) < 0.13


def test_compiles() -> None:
    stage = DeviceCapacity(4, 2, protect_rate=0.0)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(top2()), stage(top2()), strict=True):
        assert torch.equal(actual, expected)
    torch.compile(DeviceCapacity(4, 2), fullgraph=True, backend="aot_eager")(top2())


def test_bad_arguments_are_named() -> None:
    for bad, error, message in (
        (lambda: limit_device_load(top2(), 4, 3), ValueError, "num_devices must divide num_experts = 4, got 3"),
        (lambda: limit_device_load(top2(), 4, 2, factor=-1.0), ValueError, "factor must be at least 0.0"),
        (lambda: limit_device_load(top2(), 4, 2, affinity=torch.rand(6)), ValueError, "affinity must be"),
        (lambda: limit_device_load(top2(), 4, 2, protected=torch.zeros(6)), TypeError, "protected must be bool"),
        (lambda: protect_sequences(7, 2), ValueError, "7 tokens do not make 2 sequences"),
        (lambda: DeviceCapacity(4, 0), ValueError, "num_devices must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            bad()
