import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from moe_ext.losses import depth_predictor_loss, token_selection_loss

R = [0.2, 1.5, -0.3, 0.9]
SELECTED = torch.tensor([False, True, False, True])


def logits() -> torch.Tensor:
    return torch.tensor(R, dtype=torch.float64)


def test_worked_example() -> None:
    r = logits().requires_grad_()
    loss = token_selection_loss(r, SELECTED)
    assert loss.item() == pytest.approx(0.473765, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(r.grad, (logits().sigmoid() - SELECTED.double()) / 4)
    # The threshold need not agree with the choice of the best two.
    assert (logits().sigmoid() > 0.5).tolist() == [True, True, False, True]


def test_sequences_and_padding() -> None:
    r = torch.stack((logits(), logits().flip(0)))
    selected = torch.stack((SELECTED, SELECTED.flip(0)))
    assert token_selection_loss(r, selected).item() == pytest.approx(0.473765, abs=1e-6)
    mask = torch.tensor([[True] * 4, [False] * 4])
    r[1] = torch.nan
    r.requires_grad_()
    loss = token_selection_loss(r, selected, token_mask=mask)
    assert loss.item() == pytest.approx(0.473765, abs=1e-6)
    assert (torch.autograd.grad(loss, r)[0][1] == 0).all()


def test_gradcheck() -> None:
    mask = torch.tensor([True, True, False, True])
    assert gradcheck(lambda r: token_selection_loss(r, SELECTED, token_mask=mask), logits().requires_grad_())


@pytest.mark.parametrize("squeeze", [False, True])
def test_predictor_learns_and_the_model_does_not_notice(squeeze: bool) -> None:
    predictor = nn.Linear(3, 1)
    x = torch.randn(4, 3, requires_grad=True)
    loss = depth_predictor_loss((lambda x: predictor(x).squeeze(-1)) if squeeze else predictor, x, SELECTED)
    torch.testing.assert_close(loss, token_selection_loss(predictor(x)[:, 0], SELECTED))
    loss.backward()
    assert x.grad is None
    assert (predictor.weight.grad != 0).any()


def test_predictor_compiles_as_one_graph() -> None:
    predictor = nn.Linear(3, 1)
    x = torch.randn(2, 4, 3)
    selected = SELECTED.expand(2, 4)
    compiled = torch.compile(
        lambda x: depth_predictor_loss(predictor, x, selected), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), depth_predictor_loss(predictor, x, selected))


def test_errors() -> None:
    with pytest.raises(TypeError, match="selected must be bool"):
        token_selection_loss(logits(), SELECTED.long())
    with pytest.raises(ValueError, match="selected must be"):
        token_selection_loss(logits(), SELECTED[:2])
    with pytest.raises(ValueError, match="token_mask must be"):
        token_selection_loss(logits(), SELECTED, token_mask=SELECTED[:2])
    with pytest.raises(ValueError, match="selected must be"):
        depth_predictor_loss(nn.Linear(3, 2), torch.randn(4, 3), SELECTED)
