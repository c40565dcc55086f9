import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from moe_ext.losses import overload_loss, routing_distillation_loss
from tests.losses.worked_example import logits, topk_ids


def test_worked_example() -> None:
    z = logits().requires_grad_()
    loss = overload_loss(z, topk_ids()[:, :1])
    assert loss.item() == pytest.approx(3.103470, abs=1e-6)
    loss.backward()
    # Row 0 chose expert 0, which has two tokens instead of 1.5; nothing else of the row moves.
    s = torch.tensor(2.0).double().sigmoid()
    torch.testing.assert_close(z.grad[0], torch.tensor([1 / 3, 0, 0, 0]).double() * s * (1 - s))


def test_zero_at_balance() -> None:
    ids = torch.tensor([[0, 1], [2, 3]])
    z = torch.randn(2, 4, requires_grad=True)
    loss = overload_loss(z, ids)
    assert loss == 0
    assert (torch.autograd.grad(loss, z)[0] == 0).all()


def test_sequences_and_sentinels() -> None:
    halves = [overload_loss(logits()[rows], topk_ids()[rows]) for rows in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(overload_loss(logits(), topk_ids(), num_sequences=2), sum(halves))
    ids = topk_ids()
    ids[2] = -1
    ids[4, 1] = 4
    keep = torch.tensor([0, 1, 3, 4, 5])
    z = logits()
    z[2] = torch.nan
    torch.testing.assert_close(overload_loss(z, ids), overload_loss(logits()[keep], ids[keep]))
    assert gradcheck(lambda z: overload_loss(z, ids, num_sequences=2), logits().requires_grad_())


def test_distillation_is_the_cross_entropy() -> None:
    target = topk_ids()[:, 0].long()
    z = logits().requires_grad_()
    loss = routing_distillation_loss(z, topk_ids()[:, :1])
    torch.testing.assert_close(loss, F.cross_entropy(z, target, reduction="sum"))
    loss.backward()
    torch.testing.assert_close(z.grad, logits().softmax(-1) - F.one_hot(target, 4))
    target[3] = -1
    mean = routing_distillation_loss(z, target, reduction="mean")
    torch.testing.assert_close(mean, F.cross_entropy(z, target, ignore_index=-1))


def test_errors() -> None:
    with pytest.raises(ValueError, match="topk_ids must be"):
        overload_loss(logits(), topk_ids()[:2])
    with pytest.raises(ValueError, match="do not make 4 sequences"):
        overload_loss(logits(), topk_ids(), num_sequences=4)
    with pytest.raises(ValueError, match=r"assignments must be \[6\] or \[6, 1\]"):
        routing_distillation_loss(logits(), topk_ids())
    with pytest.raises(ValueError, match="reduction must be"):
        routing_distillation_loss(logits(), topk_ids()[:, 0], reduction="none")
    with pytest.raises(TypeError, match="assignments must be int32 or int64"):
        routing_distillation_loss(logits(), logits()[:, 0])
