import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moe_ext.losses import expert_contrastive_loss, task_contrastive_loss


def outputs() -> Tensor:
    """Two tokens of expert 0 and one of expert 1."""
    return torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.0, 1.0]]], dtype=torch.float64)


IDS = torch.tensor([[0], [0], [1]], dtype=torch.int32)
FEATURES = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
TASKS = torch.tensor([0, 0, 1])


def test_experts_of_the_worked_example() -> None:
    # The anchor (1, 0) has 0.437488; the anchor (0.6, 0.8) is closer to its negative; expert 1 has no positive.
    other = math.log(1 + math.exp(0.8 - 0.6))
    loss = expert_contrastive_loss(outputs(), IDS, temperature=1.0)
    assert loss.item() == pytest.approx((0.437488 + other) / 2, abs=1e-6)


def test_experts_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(7, 2, 5, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(7)])
    ids[2, 1] = -1
    slots = [(t, k) for t in range(7) for k in range(2) if ids[t, k] >= 0]
    unit = out / out.norm(dim=-1, keepdim=True)

    def similarity(a: tuple[int, int], b: tuple[int, int]) -> float:
        return math.exp((unit[a] @ unit[b]).item() / 0.3)

    per_anchor = []
    for q in slots:
        negative = sum(similarity(q, n) for n in slots if ids[n] != ids[q])
        positives = [similarity(q, k) for k in slots if ids[k] == ids[q] and k[0] != q[0]]
        if positives:
            per_anchor.append(sum(-math.log(s / (s + negative)) for s in positives) / len(positives))
    expected = sum(per_anchor) / len(per_anchor)
    assert expert_contrastive_loss(out, ids, temperature=0.3).item() == pytest.approx(expected)


def test_no_pairs_is_a_loss_of_zero() -> None:
    out = outputs().requires_grad_()
    # All different experts: no positives. All the same: no negatives.
    for ids in (torch.tensor([[0], [1], [2]]), torch.tensor([[0], [0], [0]]), torch.full((3, 1), -1)):
        loss = expert_contrastive_loss(out, ids)
        assert loss == 0
        assert (torch.autograd.grad(loss, out)[0] == 0).all()
    assert expert_contrastive_loss(out[:0], IDS[:0]) == 0


@pytest.mark.parametrize(("form", "first", "second"), [("ratio", -1.6, -0.4), ("infonce", 0.183901, 0.513015)])
def test_tasks_of_the_worked_example(form: str, first: float, second: float) -> None:
    loss = task_contrastive_loss(FEATURES, TASKS, form=form, temperature=0.5)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize("form", ["ratio", "infonce"])
@pytest.mark.parametrize("tasks", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_of_one_task_or_of_all_different_ones(form: str, tasks: list[int]) -> None:
    features = FEATURES.clone().requires_grad_()
    loss = task_contrastive_loss(features, torch.tensor(tasks), form=form)
    assert loss == 0
    assert (torch.autograd.grad(loss, features)[0] == 0).all()
    assert task_contrastive_loss(features[:0], TASKS[:0]) == 0


@pytest.mark.parametrize("form", ["ratio", "infonce"])
def test_masked_samples_and_names_of_tasks(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    tasks = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
    keep = torch.tensor([True, True, True, True, False, True, True, True])
    expected = task_contrastive_loss(features[keep], tasks[keep], form=form)
    features[4] = torch.nan
    torch.testing.assert_close(task_contrastive_loss(features, 7 - tasks, form=form, token_mask=keep), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1], [1, 2], [0, 2], [2, -1]])
    mask = torch.tensor([True, True, True, True])
    assert gradcheck(
        lambda x: expert_contrastive_loss(x, ids, temperature=0.5, normalize=normalize, token_mask=mask), out
    )
    for form in ("ratio", "infonce"):
        assert gradcheck(
            lambda x, form=form: task_contrastive_loss(x[:, 0], ids[:, 0], form=form, normalize=normalize), out
        )


def test_small_temperatures_do_not_overflow() -> None:
    for form in ("ratio", "infonce"):
        features = FEATURES.float().requires_grad_()
        loss = task_contrastive_loss(features, TASKS, form=form, temperature=1e-3)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, features)[0].isfinite().all()
    assert expert_contrastive_loss(outputs().float(), IDS, temperature=1e-3).isfinite()


def test_float64_keeps_its_digits() -> None:
    # Both anchors of task 0 see (1, 0) as the negative: gaps of 20.5 and of 0.
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    loss = task_contrastive_loss(features, TASKS, temperature=1 / 20.5)
    assert loss.item() == pytest.approx((20.5 + math.log1p(math.exp(-20.5)) + math.log(2)) / 2, rel=1e-14)
    loss = expert_contrastive_loss(features[:, None], IDS, temperature=1 / 20.5)
    assert loss.item() == pytest.approx((20.5 + math.log1p(math.exp(-20.5)) + math.log(2)) / 2, rel=1e-14)


def test_errors() -> None:
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        expert_contrastive_loss(outputs(), IDS, temperature=0.0)
    with pytest.raises(ValueError, match="outputs must be"):
        expert_contrastive_loss(outputs()[:, 0], IDS)
    with pytest.raises(ValueError, match="topk_ids must be"):
        expert_contrastive_loss(outputs(), IDS[:2])
    with pytest.raises(ValueError, match="form must be"):
        task_contrastive_loss(FEATURES, TASKS, form="triplet")
    with pytest.raises(ValueError, match="task_ids must be"):
        task_contrastive_loss(FEATURES, TASKS[:2])
