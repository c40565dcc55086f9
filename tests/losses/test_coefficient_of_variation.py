import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import importance_loss, soft_importance_loss, squared_coefficient_of_variation
from tests.losses.worked_example import logits, topk_ids


def weights() -> torch.Tensor:
    return logits().gather(1, topk_ids().long()).softmax(-1)


@pytest.mark.parametrize(("correction", "expected"), [(0, 0.383432), (1, 0.511243)])
def test_importance_of_the_worked_example(correction: int, expected: float) -> None:
    loss = importance_loss(weights(), topk_ids(), 4, correction=correction)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    importance = torch.tensor([2.332164, 2.462117, 0.936777, 0.268941], dtype=torch.float64)
    loss = squared_coefficient_of_variation(importance, correction=correction)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_importance_of_vmoe() -> None:
    # The importance of each expert, and what that gives.
    importance = torch.tensor([2.102121, 2.325063, 1.074224, 0.498592], dtype=torch.float64)
    assert squared_coefficient_of_variation(importance).item() == pytest.approx(0.247487, abs=1e-6)
    assert soft_importance_loss(logits()).item() == pytest.approx(0.247487, abs=1e-6)


def test_sequences_and_padding() -> None:
    per_sequence = [importance_loss(weights()[rows], topk_ids()[rows], 4) for rows in (slice(0, 3), slice(3, 6))]
    loss = importance_loss(weights(), topk_ids(), 4, num_sequences=2)
    torch.testing.assert_close(loss, torch.stack(per_sequence).mean())
    # A sequence that is all padding does not enter the mean.
    mask = torch.tensor([True] * 3 + [False] * 3)
    torch.testing.assert_close(
        importance_loss(weights(), topk_ids(), 4, num_sequences=2, token_mask=mask), per_sequence[0]
    )
    soft = soft_importance_loss(logits(), num_sequences=2, token_mask=mask)
    torch.testing.assert_close(soft, soft_importance_loss(logits()[:3]))


def test_sentinels_add_nothing() -> None:
    ids = topk_ids()
    ids[0, 1], ids[3, 0] = -1, 4
    w = weights()
    w[0, 1] = float("nan")
    expected = squared_coefficient_of_variation(
        torch.zeros(4, dtype=torch.float64).index_add(0, ids[(ids >= 0) & (ids < 4)].long(), w[(ids >= 0) & (ids < 4)])
    )
    torch.testing.assert_close(importance_loss(w, ids, 4), expected)


def test_zero_if_equal_and_independent_of_scale() -> None:
    ids = torch.tensor([[0, 1], [2, 3]])
    assert importance_loss(torch.full((2, 2), 0.5), ids, 4) == 0
    torch.testing.assert_close(importance_loss(7 * weights(), topk_ids(), 4), importance_loss(weights(), topk_ids(), 4))


@pytest.mark.parametrize("correction", [0, 1])
def test_of_one_expert_nothing_varies(correction: int) -> None:
    x = torch.tensor([3.0], requires_grad=True)
    loss = squared_coefficient_of_variation(x, correction=correction)
    assert loss == 0
    assert torch.autograd.grad(loss, x)[0] == 0


def test_gradient() -> None:
    x = torch.tensor([2.3, 2.5, 0.9, 0.3], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_coefficient_of_variation(x), x)
    mean, variance = x.mean(), x.var(correction=0)
    torch.testing.assert_close(gradient, 2 / (4 * mean**2) * (x - mean - variance / mean).detach())
    assert gradcheck(lambda w: importance_loss(w, topk_ids(), 4, num_sequences=2), weights().requires_grad_())


def test_errors() -> None:
    with pytest.raises(ValueError, match="correction must be at most 1"):
        squared_coefficient_of_variation(torch.ones(3), correction=2)
    with pytest.raises(ValueError, match=r"x must be \[..., n\]"):
        squared_coefficient_of_variation(torch.ones(()))
    with pytest.raises(ValueError, match="topk_ids must be"):
        importance_loss(weights(), topk_ids()[:, :1], 4)
    with pytest.raises(TypeError, match="topk_weights must be"):
        importance_loss(topk_ids(), topk_ids(), 4)
    with pytest.raises(ValueError, match="do not make 4 sequences"):
        soft_importance_loss(logits(), num_sequences=4)
