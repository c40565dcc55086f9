"""ReMoE's ReLU routing (arXiv:2412.14711)."""

import pytest
import torch

from moe_ext import fused_experts
from moe_ext.routing import ReLUSelection, SparsityController, relu_sparsity, relu_sparsity_loss

A = torch.tensor([[2.0, 1, 0, -1], [1, 3, 0, 2], [0.5, 0.5, 2, -2], [3, 0, 1, 1], [1, 2, 0, 0], [2, 3, 1, 0]])
E = 4


def test_worked_example() -> None:
    logits = A - 1
    weights, ids = ReLUSelection(E)(logits)
    assert float((ids >= 0).double().mean()) == pytest.approx(1 / 3)
    assert float((ids >= 0).sum(1).double().mean()) == pytest.approx(1.333333, abs=1e-6)
    assert float(1 - relu_sparsity(logits)) == pytest.approx(1 / 3)
    # sum of relu(A - 1) = 1 + (2 + 1) + 1 + 2 + 1 + (1 + 2) = 11
    assert float(weights.sum()) == 11
    assert float(relu_sparsity_loss(logits, 2, balance=False)) == pytest.approx(11 / 6)
    assert ids[1].tolist() == [1, 3, -1, -1]
    assert weights[1].tolist() == [2, 1, 0, 0]


def test_balanced_loss_by_hand() -> None:
    # Columns of relu(A - 1): sums [4, 5, 1, 1], positive entries [3, 3, 1, 1]; f = E / (k T) * entries.
    expected = sum(4 / (2 * 6) * n * s / 6 for n, s in zip([3, 3, 1, 1], [4, 5, 1, 1], strict=True))
    assert float(relu_sparsity_loss(A - 1, 2)) == pytest.approx(expected)


def test_masked_tokens_do_not_count() -> None:
    logits = torch.randn(10, E)
    mask = torch.arange(10) % 3 > 0
    for balance in (True, False):
        torch.testing.assert_close(
            relu_sparsity_loss(logits, 2, balance=balance, token_mask=mask),
            relu_sparsity_loss(logits[mask], 2, balance=balance),
        )
    torch.testing.assert_close(relu_sparsity(logits, token_mask=mask), relu_sparsity(logits[mask]))


def test_no_tokens() -> None:
    assert float(relu_sparsity_loss(torch.zeros(0, E), 2)) == 0
    assert float(relu_sparsity_loss(A, 2, token_mask=torch.zeros(6, dtype=torch.bool))) == 0
    assert ReLUSelection(E)(torch.zeros(0, E)).topk_ids.shape == (0, E)


def test_the_output_is_continuous_where_an_expert_appears() -> None:
    x = torch.randn(1, 8, dtype=torch.float64)
    up, down = torch.randn(2, 16, 8, dtype=torch.float64), torch.randn(2, 8, 8, dtype=torch.float64)

    def y(z: float) -> torch.Tensor:
        weights, ids = ReLUSelection(2)(torch.tensor([[1.0, z]], dtype=torch.float64))
        assert (ids[0, 1] >= 0) == (z > 0)
        return fused_experts(x, up, down, weights, ids)

    torch.testing.assert_close(y(1e-9), y(-1e-9), atol=1e-6, rtol=0)


def test_gradients() -> None:
    logits = torch.randn(6, E, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ReLUSelection(E)(z).topk_weights, logits)
    assert torch.autograd.gradcheck(lambda z: relu_sparsity_loss(z, 2, balance=False), logits)
    # The usage is a constant, so gradcheck does not apply to the balanced loss: f_e / T where the gate is open.
    (grad,) = torch.autograd.grad(relu_sparsity_loss(logits, 2), logits)
    open_gate = (logits > 0).double()
    torch.testing.assert_close(grad, open_gate * open_gate.sum(0) * E / (2 * 6) / 6)


def test_the_controller_raises_the_price_of_density() -> None:
    controller = SparsityController(E, 1, initial=1.0, factor=1.2)
    controller.update(torch.tensor(0.5))  # below 1 - 1/4: too dense
    assert float(controller.coefficient) == pytest.approx(1.2)
    controller.update(torch.tensor(0.75))
    assert float(controller.coefficient) == pytest.approx(1.2)
    controller.update(torch.tensor(0.9))
    assert float(controller.coefficient) == pytest.approx(1.0)
    assert "coefficient" in controller.bfloat16().state_dict()
    assert controller.coefficient.dtype == torch.float32


def test_training_reaches_the_target() -> None:
    x = torch.randn(256, 16)
    x[:, 0] = 1
    weight = torch.nn.Parameter(torch.randn(8, 16) / 4)
    controller = SparsityController(8, 2, initial=0.1, factor=1.02)
    optimizer = torch.optim.Adam([weight], 0.01)
    sparsity = []
    for _ in range(300):
        logits = x @ weight.T
        # The main loss wants every gate at 1.
        loss = (logits.relu() - 1).square().mean() + controller.coefficient * relu_sparsity_loss(logits, 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsity.append(relu_sparsity(logits))
        controller.update(sparsity[-1])
    assert float(sparsity[0]) < 0.6
    assert float(torch.stack(sparsity[-100:]).mean()) == pytest.approx(0.75, abs=0.005)


def test_the_coefficient_finds_back_from_its_limits() -> None:
    controller = SparsityController(E, 1, factor=1e30)
    for _ in range(3):
        controller.update(torch.tensor(1.0))
    assert float(controller.coefficient) > 0
    for _ in range(5):
        controller.update(torch.tensor(0.0))
    assert torch.isfinite(controller.coefficient)


def test_fewer_slots_keep_the_best() -> None:
    assert ReLUSelection(E, max_experts=1)(A - 1).topk_ids.flatten().tolist() == [0, 1, 2, 0, 1, 1]


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(ReLUSelection(E), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(A - 1), ReLUSelection(E)(A - 1), strict=True):
        assert torch.equal(a, b)
    loss = torch.compile(relu_sparsity_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss(A - 1, 2.0), relu_sparsity_loss(A - 1, 2))


def test_errors() -> None:
    with pytest.raises(ValueError, match="max_experts must be at most 4"):
        ReLUSelection(E, max_experts=5)
    with pytest.raises(ValueError, match="top_k must be at most 4"):
        relu_sparsity_loss(A, 5)
    with pytest.raises(ValueError, match="top_k must be greater than 0"):
        SparsityController(E, 0)
    with pytest.raises(ValueError, match="factor must be greater than 1"):
        SparsityController(E, 2, factor=1.0)
