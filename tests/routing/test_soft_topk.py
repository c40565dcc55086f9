"""The differentiable top-k: against its worked example, its own defining equation, and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_ext.routing import SoftTopK, soft_topk
from moe_ext.routing.soft_topk import find_threshold

Z = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)


def test_worked_example() -> None:
    y = soft_topk(Z, 2, temperature=0.5)
    expected = torch.tensor([0.952574, 0.731059, 0.268941, 0.047426], dtype=torch.float64)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)
    # The threshold is 0.5.
    torch.testing.assert_close(y, ((Z - 0.5) / 0.5).sigmoid())
    jacobian = torch.autograd.functional.jacobian(lambda z: soft_topk(z, 2, temperature=0.5), Z)
    row = torch.tensor([0.081912, -0.036736, -0.036736, -0.008441], dtype=torch.float64)
    torch.testing.assert_close(jacobian[0], row, atol=1e-6, rtol=0)
    torch.testing.assert_close(jacobian.sum(1), torch.zeros_like(Z), atol=1e-12, rtol=0)


@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 40),
    st.floats(0.05, 1.0),
    st.sampled_from([0.01, 0.3, 1.0, 10.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_sums_to_k_and_keeps_the_order(
    seed: int, num_experts: int, share: float, temperature: float, dtype: torch.dtype
) -> None:
    z = 3 * torch.randn(5, num_experts, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    k = share * num_experts
    y = soft_topk(z, k, temperature=temperature)
    # A unit in the last place of z moves y by up to eps |z| / (4 temperature).
    tolerance = 4 * torch.finfo(dtype).eps * num_experts * max(1, 1 / temperature)
    torch.testing.assert_close(y.sum(1), torch.full((5,), k, dtype=dtype), atol=tolerance, rtol=0)
    assert (y >= 0).all()
    assert (y <= 1).all()
    order = z.argsort(1)
    assert (y.gather(1, order).diff(dim=1) >= 0).all()


def test_low_temperature_is_the_hard_top_k() -> None:
    z = torch.randn(20, 16, dtype=torch.float64)
    hard = torch.zeros_like(z).scatter_(1, z.topk(4).indices, 1.0)
    torch.testing.assert_close(soft_topk(z, 4, temperature=1e-5), hard, atol=1e-6, rtol=0)


def test_all_of_them() -> None:
    z = torch.randn(3, 5, requires_grad=True)
    y = soft_topk(z, 5)
    torch.testing.assert_close(y, torch.ones(3, 5))
    y.sum().backward()
    assert torch.equal(z.grad, torch.zeros(3, 5))


def test_shifting_the_logits_changes_nothing() -> None:
    z = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(soft_topk(z + 7, 2), soft_topk(z, 2))


def test_experts_that_must_not_be_chosen() -> None:
    inf = float("inf")
    y = soft_topk(torch.tensor([[2.0, -inf, 0.0, -1.0], [1.0, -inf, -inf, -inf], [-inf, -inf, -inf, -inf]]), 2)
    torch.testing.assert_close(y[0, [0, 2, 3]], soft_topk(torch.tensor([2.0, 0.0, -1.0]), 2))
    assert y[0, 1] == 0
    assert y[1].tolist() == [1, 0, 0, 0]
    assert y[2].tolist() == [0, 0, 0, 0]


def test_nan_stays_in_its_row() -> None:
    y = soft_topk(torch.tensor([[float("nan"), 1.0, 0.0], [2.0, 1.0, 0.0]]), 1)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("k", [1, 2.5, 4])
def test_gradcheck(k: float) -> None:
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: soft_topk(z, k, temperature=t), (z, temperature))
    assert torch.autograd.gradgradcheck(lambda z, t: soft_topk(z, k, temperature=t), (z, temperature))


def test_torch_func() -> None:
    z = torch.randn(3, 5, dtype=torch.float64)
    whole = torch.func.jacrev(lambda z: soft_topk(z, 2))(z)
    rows = torch.func.vmap(torch.func.jacrev(lambda z: soft_topk(z, 2)))(z)
    for t in range(3):
        torch.testing.assert_close(whole[t, :, t], rows[t])


def test_selection_keeps_the_best_of_the_soft_weights() -> None:
    z = torch.randn(9, 6, requires_grad=True)
    weights, ids = SoftTopK(6, 2, temperature=0.5)(z)
    expected, expected_ids = soft_topk(z, 2, temperature=0.5).topk(2)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights, expected)
    weights[0, 0].backward()
    # Also to logits that were not selected.
    assert (z.grad[0] != 0).all()


def test_selection_of_all_and_renormalised() -> None:
    z = torch.randn(9, 6)
    weights, ids = SoftTopK(6, 2, num_slots=6)(z)
    torch.testing.assert_close(weights.sum(1), torch.full((9,), 2.0))
    assert ids.sort(1).values.tolist() == [list(range(6))] * 9
    weights, _ = SoftTopK(6, 2, renormalize=True)(z)
    torch.testing.assert_close(weights.sum(1), torch.ones(9))


def test_saturated_weights_are_still_in_order() -> None:
    assert SoftTopK(4, 3, temperature=1e-3)(torch.tensor([[1.0, 3.0, -9.0, 2.0]])).topk_ids.tolist() == [[1, 3, 0]]


def test_compiles_as_one_graph() -> None:
    selection = SoftTopK(6, 2, temperature=0.5)
    z = torch.randn(9, 6, requires_grad=True)
    compiled = torch.compile(selection, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(z), selection(z), strict=True):
        torch.testing.assert_close(a, b)
    (a,) = torch.autograd.grad(compiled(z).topk_weights.square().sum(), z)
    (b,) = torch.autograd.grad(selection(z).topk_weights.square().sum(), z)
    torch.testing.assert_close(a, b)


def test_the_threshold_is_an_op() -> None:
    torch.library.opcheck(find_threshold, (torch.randn(5, 3).T, 2.0))
    batched = torch.func.vmap(lambda z: soft_topk(z, 2), in_dims=1, out_dims=1)
    z = torch.randn(3, 5, 4)
    torch.testing.assert_close(batched(z), soft_topk(z.transpose(0, 1), 2).transpose(0, 1))


def test_dtypes() -> None:
    selection = SoftTopK(6, 2).bfloat16()
    assert selection.temperature.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert selection(torch.randn(3, 6).bfloat16()).topk_weights.dtype == torch.float32
    assert selection(torch.randn(3, 6).double()).topk_weights.dtype == torch.float64


def test_errors() -> None:
    with pytest.raises(ValueError, match="E at least k = 5"):
        soft_topk(Z, 5)
    with pytest.raises(ValueError, match="k must be greater than 0"):
        soft_topk(Z, 0)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        soft_topk(Z, 1, temperature=0.0)
    with pytest.raises(TypeError, match="logits must be"):
        soft_topk(torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="top_k must be at most 4"):
        SoftTopK(4, 5)
    with pytest.raises(ValueError, match="num_slots must be at most 4"):
        SoftTopK(4, 2, num_slots=5)
