"""Logits by place (Spatial mixture-of-experts, arXiv:2211.13491)."""

import pytest
import torch
import torch.nn.functional as F

from moe_ext.routing import GridLogits, Router, TopK

E = 4


def test_the_place_decides_and_the_content_does_not() -> None:
    gate = GridLogits((2, 3), E)
    router = Router(gate, TopK(E, 2, score="none"))
    places = torch.tensor([0, 5, 4, 0])
    weights, ids, logits = router(torch.randn(4, 7), gate_input=places)
    rows = torch.stack([gate.weight[0, 0], gate.weight[1, 2], gate.weight[1, 1], gate.weight[0, 0]])
    torch.testing.assert_close(logits, rows)
    # Not renormalised.
    torch.testing.assert_close(weights, rows.topk(2).values)
    assert torch.equal(ids[0], ids[3])


def test_gradient_goes_to_the_places_that_were_met() -> None:
    gate = GridLogits((2, 3), E)
    gate(torch.tensor([1, 1, 5])).sum().backward()
    expected = torch.zeros(6, E)
    expected[1], expected[5] = 2, 1
    assert torch.equal(gate.weight.grad.reshape(6, E), expected)


def test_routing_classification_loss_of_the_docstring() -> None:
    """It raises the gate of experts with a small error and lowers that of the others."""
    gate = GridLogits((3,), E)
    _, ids, logits = Router(gate, TopK(E, 2, score="none"))(torch.zeros(3, 1), gate_input=torch.arange(3))
    error = torch.tensor([[0.1, 0.9], [0.1, 0.1], [0.9, 0.9]])
    loss = F.binary_cross_entropy_with_logits(logits.gather(1, ids.long()), (error <= 0.5).float())
    loss.backward()
    sign = gate.weight.grad.gather(1, ids.long()).sign()
    assert sign.tolist() == [[-1, 1], [-1, -1], [1, 1]]


def test_stays_in_float32_and_compiles() -> None:
    gate = GridLogits((4, 4), E).bfloat16()
    assert gate.weight.dtype == torch.float32
    places = torch.arange(16)
    assert torch.equal(torch.compile(gate, fullgraph=True, backend="aot_eager")(places), gate(places))


def test_errors() -> None:
    gate = GridLogits((2, 3), E)
    with pytest.raises(ValueError, match=r"places must be in 0\.\.5, got 6"):
        gate(torch.tensor([6]))
    with pytest.raises(TypeError, match="places must be an int32 or int64"):
        gate(torch.zeros(3))
    with pytest.raises(ValueError, match="grid must have at least one size"):
        GridLogits((), E)
    with pytest.raises(ValueError, match="grid must be at least 1"):
        GridLogits((2, 0), E)
