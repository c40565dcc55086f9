import pytest
import torch

from moe_ext.routing import update_expert_bias

COUNTS = torch.tensor([5, 4, 2, 1])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sign", [-0.001, -0.001, 0.001, 0.001]),
        ("rms", [-0.001265, -0.000632, 0.000632, 0.001265]),
        ("proportional", [-0.002, -0.001, 0.001, 0.002]),
    ],
)
def test_worked_example(mode: str, expected: list[float]) -> None:
    bias = torch.zeros(4)
    assert update_expert_bias(bias, COUNTS, 1e-3, mode) is bias
    torch.testing.assert_close(bias, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["sign", "rms", "proportional"])
def test_balanced_counts_change_nothing(mode: str) -> None:
    bias = torch.randn(4)
    before = bias.clone()
    update_expert_bias(bias, torch.full((4,), 7), 1e-3, mode)
    assert torch.equal(bias, before)


def test_small_imbalance_of_a_huge_batch() -> None:
    # In float32 these two counts are equal.
    bias = torch.zeros(2)
    update_expert_bias(bias, torch.tensor([2**26 + 1, 2**26]))
    assert bias.tolist() == pytest.approx([-1e-3, 1e-3])


@pytest.mark.parametrize("mode", ["sign", "rms"])
def test_iteration_balances_fixed_scores(mode: str) -> None:
    scores = torch.rand(512, 8) + torch.linspace(0, 0.5, 8)
    bias = torch.zeros(8)

    def max_violation() -> float:
        counts = torch.bincount((scores + bias).topk(2).indices.flatten(), minlength=8)
        update_expert_bias(bias, counts, 5e-3, mode)
        return float((counts.max() - counts.double().mean()) / counts.double().mean())

    first, *_, last = (max_violation() for _ in range(100))
    assert first > 0.7
    assert last < 0.1


def test_errors() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        update_expert_bias(torch.zeros(4), COUNTS, mode="cosine")
    with pytest.raises(ValueError, match="shape of expert_bias"):
        update_expert_bias(torch.zeros(3), COUNTS)
