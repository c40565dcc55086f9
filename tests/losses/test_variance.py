import pytest
import torch
from torch.autograd import gradcheck

from moe_ext.losses import cluster_variance_loss
from tests.losses.worked_example import logits


def test_two_clusters_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.1, 0.1]], dtype=torch.float64)
    # Times 2: means 0.8 and 0.2; inside 0.2^2 and 0, between 0.3^2.
    assert cluster_variance_loss(p.log(), 2).item() == pytest.approx(0.5 * 0.04 - 0.09)
    assert cluster_variance_loss(p.log(), 2, separation=0.0).item() == pytest.approx(0.02)


@pytest.mark.parametrize(("num_experts", "num_clusters"), [(4, 2), (12, 3), (8, 8)])
def test_smallest_for_one_cluster_and_any_expert_of_it(num_experts: int, num_clusters: int) -> None:
    z = torch.full((1, num_experts), -1e4, dtype=torch.float64)
    z[0, : num_experts // num_clusters] = 0
    smallest = -(num_clusters - 1) / num_clusters**2
    assert cluster_variance_loss(z, num_clusters).item() == pytest.approx(smallest)
    assert cluster_variance_loss(torch.zeros(3, num_experts), num_clusters).item() == pytest.approx(0, abs=1e-7)
    if num_experts > num_clusters:
        z[0, 1] = -1e4
        assert cluster_variance_loss(z, num_clusters).item() > smallest + 0.1


def test_names_inside_clusters_do_not_matter() -> None:
    renamed = logits()[:, [3, 2, 0, 1]]
    torch.testing.assert_close(cluster_variance_loss(renamed, 2), cluster_variance_loss(logits(), 2))


def test_gradcheck() -> None:
    assert gradcheck(lambda z: cluster_variance_loss(z, 2, separation=0.3), logits().requires_grad_())


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_clusters must divide num_experts = 4, got 3"):
        cluster_variance_loss(logits(), 3)
    with pytest.raises(ValueError, match="separation must be at least 0"):
        cluster_variance_loss(logits(), 2, separation=-1.0)
