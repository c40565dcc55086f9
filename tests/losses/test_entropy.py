import math

import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import global_entropy_loss, local_entropy_loss
from tests.losses.worked_example import logits


def test_worked_example() -> None:
    assert local_entropy_loss(logits()).item() == pytest.approx(0.930169, abs=1e-6)
    assert global_entropy_loss(logits()).item() == pytest.approx(-1.249520, abs=1e-6)
    assert global_entropy_loss(logits(), min_experts=3) == 0
    expected = math.log(4) - 1.249520
    assert global_entropy_loss(logits(), min_experts=4).item() == pytest.approx(expected, abs=1e-6)


def test_entropies_of_the_worked_example() -> None:
    entropies = [local_entropy_loss(row[None]).item() for row in logits()]
    assert entropies == pytest.approx([0.947537, 0.947537, 0.888643, 0.801056, 1.048705, 0.947537], abs=1e-6)


def test_gradient_of_the_local_loss() -> None:
    z = logits().requires_grad_()
    local_entropy_loss(z).backward()
    p = z.detach().softmax(-1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(z.grad, -p * (p.log() + entropy) / 6)


def test_extremes() -> None:
    certain = 100 * torch.eye(4)
    assert local_entropy_loss(certain) == pytest.approx(0, abs=1e-6)
    assert global_entropy_loss(certain).item() == pytest.approx(-math.log(4))
    assert local_entropy_loss(torch.zeros(3, 4)).item() == pytest.approx(math.log(4))
    # All on one expert: as far from log S as can be.
    assert global_entropy_loss(certain[:1], min_experts=4).item() == pytest.approx(math.log(4))


def test_modalities() -> None:
    modality = torch.tensor([0, 1, 0, 1, 2, -1])
    alone = [global_entropy_loss(logits()[modality == m]) for m in range(3)]
    loss = global_entropy_loss(logits(), modality_ids=modality, num_modalities=3)
    torch.testing.assert_close(loss, torch.stack(alone).sum())
    # A threshold each; one that no token belongs to adds nothing.
    loss = global_entropy_loss(logits(), modality_ids=modality, num_modalities=4, min_experts=[4, 4, 1, 4])
    expected = sum((math.log(4) + entropy).clamp(min=0) for entropy in alone[:2])
    torch.testing.assert_close(loss, expected)


def test_what_a_token_of_no_modality_holds_does_not_matter() -> None:
    modality = torch.tensor([0, 1, 0, 1, 2, -1])
    z = logits()
    z[4:] = torch.nan
    z.requires_grad_()
    loss = global_entropy_loss(z, modality_ids=modality, num_modalities=2)
    torch.testing.assert_close(loss, global_entropy_loss(logits()[:4], modality_ids=modality[:4], num_modalities=2))
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient[:4] != 0).all()
    assert (gradient[4:] == 0).all()


def test_experts_out_of_reach() -> None:
    z = logits()
    z[:, 2] = -torch.inf
    z.requires_grad_()
    reachable = logits()[:, [0, 1, 3]]
    for loss in (local_entropy_loss, global_entropy_loss):
        value = loss(z)
        torch.testing.assert_close(value, loss(reachable))
        assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_gradcheck_of_modalities() -> None:
    modality = torch.tensor([0, 1, 0, 1, 1, -1])
    for min_experts in (None, [4, 3.9]):
        assert gradcheck(
            lambda z, s=min_experts: global_entropy_loss(z, modality_ids=modality, num_modalities=2, min_experts=s),
            logits().requires_grad_(),
        )


def test_errors() -> None:
    ids = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="modality_ids must be given"):
        global_entropy_loss(logits(), num_modalities=2)
    with pytest.raises(ValueError, match="min_experts must be one number or num_modalities = 2, got 3"):
        global_entropy_loss(logits(), modality_ids=ids, num_modalities=2, min_experts=[1, 2, 3])
    with pytest.raises(ValueError, match="min_experts must be at least 1"):
        global_entropy_loss(logits(), min_experts=0.5)
    with pytest.raises(TypeError, match="modality_ids must be int32 or int64"):
        global_entropy_loss(logits(), modality_ids=ids.float())
    with pytest.raises(ValueError, match="router_logits must be"):
        local_entropy_loss(logits()[0])
