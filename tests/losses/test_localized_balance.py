import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import localized_balance_loss, sample_importance
from tests.losses.worked_example import logits

IMPORTANCE = [[4, 3, 2, 1], [1, 2, 3, 4]]
SAMPLES, EXPERTS = torch.tensor([1, 0]), torch.tensor([1, 1, 0, 0])


def importance() -> torch.Tensor:
    return torch.tensor(IMPORTANCE, dtype=torch.float64)


@pytest.mark.parametrize(("form", "expected"), [("paper", 0.698077), ("code", 0.306847)])
def test_worked_example(form: str, expected: float) -> None:
    loss = localized_balance_loss(importance(), SAMPLES, EXPERTS, delta=0.1, form=form)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_smallest_where_types_get_what_delta_says(form: str) -> None:
    q = torch.tensor([[0.9, 0.9, 1.1, 1.1], [1.1, 1.1, 0.9, 0.9]], dtype=torch.float64).reciprocal()
    # Samples of type 0 and 1: the weights make up for q exactly.
    assert localized_balance_loss(q.flip(0), SAMPLES, EXPERTS, form=form).item() == pytest.approx(0, abs=1e-12)
    names = torch.tensor([2, 0, 3, 1])
    renamed = localized_balance_loss(importance()[:, names], SAMPLES, EXPERTS[names], form=form)
    torch.testing.assert_close(renamed, localized_balance_loss(importance(), SAMPLES, EXPERTS, form=form))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_no_samples_is_a_loss_of_zero(form: str) -> None:
    assert localized_balance_loss(importance()[:0], SAMPLES[:0], EXPERTS, form=form) == 0


def test_importance_of_samples() -> None:
    mask = torch.tensor([True, True, False, True, True, True])
    z = logits()
    z[2] = torch.nan
    p = logits().softmax(-1)
    expected = torch.stack((p[:2].sum(0), p[3:].sum(0)))
    torch.testing.assert_close(sample_importance(z, 2, token_mask=mask), expected)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_gradcheck(form: str) -> None:
    assert gradcheck(
        lambda z: localized_balance_loss(sample_importance(z, 2), SAMPLES, EXPERTS, form=form),
        logits().requires_grad_(),
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match="form must be"):
        localized_balance_loss(importance(), SAMPLES, EXPERTS, form="std")
    with pytest.raises(ValueError, match="delta must be at most 1"):
        localized_balance_loss(importance(), SAMPLES, EXPERTS, delta=2.0)
    with pytest.raises(ValueError, match="expert_types must be"):
        localized_balance_loss(importance(), SAMPLES, EXPERTS[:2])
    with pytest.raises(ValueError, match="do not make 4 sequences"):
        sample_importance(logits(), 4)
