"""ExpertChoice and its causal and capped relatives."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_ext.routing import CausalExpertChoice, ExpertChoice, ExpertChoiceCapped, LinearLogits, Router
from moe_ext.routing.causal_expert_choice import count_earlier_at_least
from moe_ext.routing.expert_choice import capacity_on_device, capacity_rule
from moe_ext.routing.expert_choice_capped import project_capped

A = torch.tensor(
    [[2, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]], dtype=torch.float64
)
NAN = float("nan")
MODULES = [
    pytest.param(lambda **options: ExpertChoice(4, **options), id="choice"),
    pytest.param(lambda **options: CausalExpertChoice(4, **options), id="causal"),
    pytest.param(
        lambda **options: ExpertChoiceCapped(4, **{"max_experts_per_token": 3, **options}),
        id="capped",
    ),
]


def load(topk_ids: Tensor, num_experts: int = 4) -> list[int]:
    return torch.bincount(topk_ids[topk_ids >= 0], minlength=num_experts).tolist()


def as_matrix(topk_ids: Tensor, num_experts: int = 4) -> Tensor:
    """[T, E] bool: who chose whom."""
    padded = torch.zeros(topk_ids.shape[0], num_experts + 1, dtype=torch.bool)
    return padded.scatter(1, topk_ids.long() % (num_experts + 1), True)[:, :num_experts]


def test_worked_example() -> None:
    """Two tokens for each of four experts out of six tokens; token 4 is left over."""
    weights, ids = ExpertChoice(4, capacity_factor=4 / 3)(A)
    assert ids.tolist() == [
        [0, -1, -1, -1], [1, 3, -1, -1], [2, -1, -1, -1], [0, 2, 3, -1], [-1] * 4, [1, -1, -1, -1],
    ]  # fmt: skip
    expected = torch.zeros(6, 4, dtype=torch.float64)
    expected[0, 0], expected[1, :2], expected[2, 0] = 0.643914, torch.tensor([0.643914, 0.236883]), 0.682791
    expected[3, :3], expected[5, 0] = torch.tensor([0.757313, 0.102491, 0.102491]), 0.643914
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "capacity"),
    [(6, 4, 2, 3), (10, 4, 2, 5), (6, 4, 1.2, 1), (2, 8, 1, 1), (0, 4, 2, 0), (5, 2, 2, 5), (100, 4, 1.16, 29)],
)
def test_capacity(tokens: int, experts: int, factor: float, capacity: int) -> None:
    assert ExpertChoice(experts, capacity_factor=factor).max_rows(tokens) == experts * capacity


@pytest.mark.parametrize("factor", [0.29, 1.16, 4 / 3, 2.0])
def test_capacity_on_the_device_is_that_of_the_host(factor: float) -> None:
    sizes = range(4, 2000)
    rule = capacity_rule(factor)
    expected = [rule.capacity(size, 4, 1) for size in sizes]
    assert capacity_on_device(torch.tensor(sizes), 4, rule).tolist() == expected


@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_every_expert_has_the_same_load(seed: int, num_sequences: int, factor: float) -> None:
    logits = torch.randn(num_sequences * 12, 4, generator=torch.Generator().manual_seed(seed))
    ids = ExpertChoice(4, capacity_factor=factor, group_size=12)(logits).topk_ids
    for sequence in ids.split(12):
        assert load(sequence) == [int(12 * factor / 4)] * 4
    assert torch.equal(ExpertChoice(4, capacity_factor=factor)(logits, num_sequences=num_sequences).topk_ids, ids)


@pytest.mark.parametrize("make", MODULES)
def test_masked_tokens_change_nothing(make: Any) -> None:
    module, mask = make(capacity_factor=1.0), torch.tensor([True, False, True, True, False, True, True, True])
    logits = torch.randn(8, 4)
    spoiled = logits.masked_fill(~mask[:, None], NAN).requires_grad_()
    weights, ids = module(spoiled, token_mask=mask)
    assert (ids[~mask] == -1).all()
    assert (weights[~mask] == 0).all()
    assert torch.equal(ids, module(logits, token_mask=mask).topk_ids)
    (grad,) = torch.autograd.grad(weights.square().sum(), spoiled)
    assert grad.isfinite().all()
    assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("make", MODULES)
def test_weights_are_the_softmax_and_so_is_their_gradient(make: Any) -> None:
    """Of the chosen pairs, with the whole Jacobian."""
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    module = make(capacity_factor=1.5)
    weights, ids = module(logits)
    assert (weights[ids < 0] == 0).all()
    factors = torch.randn(12, 4, dtype=torch.float64)
    by_slot = torch.where(ids >= 0, factors.gather(1, ids.clamp(min=0).long()), 0.0)
    actual = torch.autograd.grad((weights * by_slot).sum(), logits)
    plain = (logits.softmax(1) * factors * as_matrix(ids)).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(plain, logits))
    assert torch.autograd.gradcheck(lambda z: module(z).topk_weights, logits)


@pytest.mark.parametrize("make", MODULES)
def test_compiles_as_one_graph_for_any_length(make: Any) -> None:
    module = Router(LinearLogits(8, 4), make(max_experts_per_token=3))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for position, num_tokens in enumerate((12, 30)):
        x = torch.randn(num_tokens, 8)
        with torch._dynamo.config.patch(error_on_recompile=position > 0):
            torch.testing.assert_close(tuple(compiled(x)), tuple(module(x)))


def test_compiles_with_running_thresholds() -> None:
    module, plain = (ExpertChoice(4, group_size=6, inference="threshold") for _ in range(2))
    logits = torch.randn(12, 4)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(tuple(compiled(logits)), tuple(plain(logits)))
    torch.testing.assert_close(module.threshold, plain.threshold)
    compiled.eval(), plain.eval()
    torch.testing.assert_close(tuple(compiled(logits)), tuple(plain(logits)))


@pytest.mark.parametrize("make", MODULES)
def test_best_experts_stay_when_there_are_too_many(make: Any) -> None:
    logits = torch.tensor([9.0, -5.0, -5.0, -5.0]).repeat(8, 1)
    logits[3] = torch.tensor([1.0, 2.0, 4.0, 3.0])
    weights, ids = make(capacity_factor=0.5, max_experts_per_token=2)(logits)
    assert ids.shape == (8, 2)
    assert set(ids[3].tolist()) == {2, 3}
    torch.testing.assert_close(weights[3].sum(), logits[3].softmax(0)[2:].sum())


@pytest.mark.parametrize("make", MODULES)
def test_float32_under_autocast(make: Any) -> None:
    logits = torch.randn(16, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = make()(logits)
    assert inside.topk_weights.dtype == torch.float32
    torch.testing.assert_close(tuple(inside), tuple(make()(logits.float())), rtol=0, atol=0)


@pytest.mark.parametrize("make", MODULES)
def test_no_tokens(make: Any) -> None:
    weights, ids = make()(torch.randn(0, 4))
    assert weights.shape == ids.shape == (0, ids.shape[1])


# Threshold --------------------------------------------------------------------------------------------------------


def test_thresholds_are_where_the_capacity_ends() -> None:
    module = ExpertChoice(4, capacity_factor=4 / 3, inference="threshold")
    module(A)
    expected = torch.tensor([0.643914, 0.643914, 0.102491, 0.102491])
    torch.testing.assert_close(module.threshold, expected, atol=1e-6, rtol=0)


def test_thresholds_follow_the_mean_over_sequences() -> None:
    module = ExpertChoice(4, group_size=8, inference="threshold", momentum=0.25)
    ends = []
    for seed in range(3):
        logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        module(logits)
        ends.append(logits.softmax(1).view(2, 8, 4).sort(1, descending=True).values[:, 3].mean(0))
    expected = ends[0].lerp(ends[1], 0.25).lerp(ends[2], 0.25)
    torch.testing.assert_close(module.threshold, expected)
    assert int(module.num_updates) == 3


def test_thresholds_of_a_padded_sequence_are_those_of_what_is_there() -> None:
    logits = torch.randn(8, 4)
    padded = torch.cat([logits, torch.randn(8, 4)])
    alone, masked = (ExpertChoice(4, inference="threshold") for _ in range(2))
    alone(logits)
    masked(padded, token_mask=torch.arange(16) < 8)
    assert torch.equal(alone.threshold, masked.threshold)


def test_a_batch_of_padding_is_no_first_update() -> None:
    module, plain = (ExpertChoice(4, inference="threshold") for _ in range(2))
    logits = torch.randn(8, 4)
    module(logits, token_mask=torch.zeros(8, dtype=torch.bool))
    assert int(module.num_updates) == 0
    module(logits), plain(logits)
    assert torch.equal(module.threshold, plain.threshold)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpoint_moves_the_thresholds_once(use_reentrant: bool, compiled: bool) -> None:
    module, plain = (ExpertChoice(4, inference="threshold", momentum=0.5) for _ in range(2))
    torch._dynamo.reset()
    forward = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    for seed in range(3):
        logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        y = checkpoint(lambda z: forward(z).topk_weights.sum(), logits, use_reentrant=use_reentrant)
        y.backward()
        plain(logits)
    torch.testing.assert_close(module.threshold, plain.threshold)
    assert int(module.num_updates) == 3


def _follow_on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    module = ExpertChoice(4, group_size=8, inference="threshold", momentum=0.5, process_group=dist.group.WORLD)
    together = ExpertChoice(4, group_size=8, inference="threshold", momentum=0.5)
    for seed in range(2):
        logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        module(logits[8 * rank :][:8])
        together(logits)
    # A rank without tokens takes part.
    module(logits[: 8 * rank])
    together(logits[:8])
    torch.testing.assert_close(module.threshold, together.threshold)
    dist.destroy_process_group()


@pytest.mark.slow
def test_thresholds_are_those_of_all_ranks(tmp_path: Path) -> None:
    mp.spawn(_follow_on_rank, (str(tmp_path / "store"),), nprocs=2)


def test_inference_by_threshold_is_token_by_token_and_keeps_the_load() -> None:
    module = ExpertChoice(8, capacity_factor=2.0, inference="threshold", momentum=0.1)
    skew = torch.linspace(0, 2, 8)
    for _ in range(60):
        module(torch.randn(256, 8) + skew)
    module.eval()
    before = module.threshold.clone()
    logits = torch.randn(4096, 8) + skew
    routing = module(logits)
    assert torch.equal(module.threshold, before)
    shares = torch.tensor(load(routing.topk_ids, 8)) / 4096
    torch.testing.assert_close(shares, torch.full((8,), 0.25), atol=0.04, rtol=0)
    for token in (0, 17, 4095):
        alone = module(logits[token : token + 1])
        torch.testing.assert_close(tuple(alone), tuple(part[token : token + 1] for part in routing))
    weights, ids = routing
    chosen = ids >= 0
    assert (weights[chosen] >= before[ids[chosen].long()]).all()
    assert (weights[:, :-1] >= weights[:, 1:]).all()


def test_thresholds_are_kept_in_float32_and_in_the_state() -> None:
    module = ExpertChoice(4, inference="threshold").to(torch.bfloat16)
    assert module.threshold.dtype == torch.float32
    assert set(module.state_dict()) == {"threshold", "num_updates"}
    assert not ExpertChoice(4).state_dict()


# Causal -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(0, 20))
def test_counting_by_merging_is_counting(seed: int, num_groups: int, size: int) -> None:
    keys = torch.randint(0, 5, (num_groups, size, 3), generator=torch.Generator().manual_seed(seed)).float()
    before = torch.ones(size, size).tril(-1).bool()
    expected = ((keys[:, None] >= keys[:, :, None]) & before[None, :, :, None]).sum(2)
    assert torch.equal(count_earlier_at_least(keys), expected)


def test_counting_is_an_op() -> None:
    torch.library.opcheck(count_earlier_at_least, (torch.randn(2, 5, 3),))


def test_causal_choice_by_hand() -> None:
    """One expert of two, c = 1: one place for the first three tokens, two from the fourth on."""
    logits = torch.tensor([1.0, 2.0, 0.0, 1.5, 1.0])[:, None] * torch.tensor([1.0, 0.0])
    ids = CausalExpertChoice(2, capacity_factor=1.0)(logits).topk_ids
    assert as_matrix(ids, 2)[:, 0].tolist() == [True, True, False, True, False]


@given(st.integers(0, 1000), st.integers(1, 16))
def test_causal_choice_does_not_look_ahead(seed: int, seen: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, mask = torch.randn(16, 4, generator=generator), torch.rand(16, generator=generator) < 0.8
    module = CausalExpertChoice(4)
    whole, part = module(logits, token_mask=mask), module(logits[:seen], token_mask=mask[:seen])
    torch.testing.assert_close(tuple(part), tuple(x[:seen] for x in whole), rtol=0, atol=0)


def test_causal_choice_is_nearly_balanced() -> None:
    logits = torch.randn(2048, 8) + torch.linspace(0, 2, 8)
    shares = torch.tensor(load(CausalExpertChoice(8, group_size=512)(logits).topk_ids, 8)) / 2048
    torch.testing.assert_close(shares, torch.full((8,), 0.25), atol=0.03, rtol=0)


def test_the_last_token_of_a_sequence_is_chosen_as_by_looking_at_all() -> None:
    logits = torch.randn(24, 4)
    causal, plain = (make(4)(logits).topk_ids for make in (CausalExpertChoice, ExpertChoice))
    assert set(causal[-1].tolist()) == set(plain[-1].tolist())


# Capped -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(2, 4))
def test_no_token_has_more_experts_than_the_bound(seed: int, bound: int) -> None:
    """Tokens of larger logits would take more than their share of experts without it."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(32, 8, generator=generator)
    logits[:, :4] -= 2
    plain = ExpertChoice(8)(logits).topk_ids
    weights, ids = ExpertChoiceCapped(8, max_experts_per_token=bound, temperature=0.01)(logits)
    assert ids.shape == (32, bound)
    counts = torch.tensor(load(ids, 8))
    assert counts.max() <= 8
    assert counts.sum() >= 0.9 * 64  # what rounding of the matrix may cost
    assert counts.sum() >= (plain >= 0)[:, :bound].sum()  # where each token just keeps its best experts
    torch.testing.assert_close(weights, torch.where(ids >= 0, logits.softmax(1).gather(1, ids.clamp(0).long()), 0.0))


def test_capped_is_plain_where_the_bound_does_not_bind() -> None:
    logits = torch.randn(24, 4)
    capped = ExpertChoiceCapped(4, max_experts_per_token=4)(logits)
    assert torch.equal(as_matrix(capped.topk_ids), as_matrix(ExpertChoice(4)(logits).topk_ids))


def test_a_lone_token_has_its_best_experts() -> None:
    """Every expert takes it, and no matrix gives it to all of them within the bound."""
    _, ids = ExpertChoiceCapped(8, max_experts_per_token=2)(torch.arange(8.0)[None])
    assert ids.tolist() == [[7, 6]]


def test_the_projected_matrix_is_in_all_three_sets() -> None:
    scores = torch.randn(1, 16, 4, dtype=torch.float64).softmax(2)
    matrix = (project_capped(scores, 8, 2, 0.1, 2000) / 0.1).clamp(max=0).exp()
    assert matrix.sum(2).max() <= 2 + 1e-6
    torch.testing.assert_close(matrix.sum(1), torch.full((1, 4), 8.0, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.library.opcheck(project_capped, (scores.float(), 8, 2, 0.1, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertChoice(0), "num_experts must be at least 1, got 0"),
        (lambda: ExpertChoice(4, capacity_factor=5.0), r"capacity_factor must be in \(0, num_experts=4\], got 5.0"),
        (lambda: ExpertChoice(4, max_experts_per_token=5), r"must be in 1..num_experts=4, got 5"),
        (lambda: ExpertChoice(4, group_size=0), "group_size must be at least 1, got 0"),
        (lambda: ExpertChoice(4, inference="topk"), "inference must be 'choice' or 'threshold', got 'topk'"),
        (lambda: ExpertChoice(4, process_group=object()), "process_group needs inference='threshold'"),
        (lambda: ExpertChoice(4, momentum=0.0), r"momentum must be in \(0, 1\], got 0.0"),
        (lambda: CausalExpertChoice(4, capacity_factor=0.0), "CausalExpertChoice: capacity_factor"),
        (lambda: ExpertChoiceCapped(4, max_experts_per_token=1), "at least capacity_factor=2.0"),
        (lambda: ExpertChoiceCapped(4, max_experts_per_token=2, temperature=0.0), "temperature must be above 0"),
        (lambda: ExpertChoiceCapped(4, max_experts_per_token=2, num_iterations=-1), "num_iterations must be"),
        (lambda: ExpertChoice(4, group_size=4)(torch.randn(6, 4)), "group_size=4 must divide the 6 tokens"),
        (lambda: ExpertChoice(4)(torch.randn(6, 4), num_sequences=4), "num_sequences must divide the 6 tokens, got 4"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_they_say_what_they_are() -> None:
    modules: list[nn.Module] = [ExpertChoice(4), CausalExpertChoice(4), ExpertChoiceCapped(4, max_experts_per_token=2)]
    assert all("num_experts=4, capacity_factor=2.0" in repr(module) for module in modules)
