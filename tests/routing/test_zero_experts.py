"""Null, copy and constant experts (arXiv:2406.13233, arXiv:2410.07348), beside real ones in fused_experts."""

import pytest
import torch

from moe_ext import fused_experts
from moe_ext.losses import expert_counts
from moe_ext.routing import LinearLogits, Router, TopK, ZeroComputationExperts

T, H, INTER, E = 30, 6, 8, 3


def experts(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(E, 2 * INTER, H, dtype=dtype), torch.randn(E, H, INTER, dtype=dtype)


def make() -> ZeroComputationExperts:
    return ZeroComputationExperts(E, H, num_null=2, num_copy=1, num_constant=2, dtype=torch.float64)


def one_by_one(
    zero: ZeroComputationExperts,
    up: torch.Tensor,
    down: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """The definition, a slot at a time."""
    y = torch.zeros_like(x)
    for t in range(x.shape[0]):
        for w, e in zip(weights[t], ids[t].tolist(), strict=True):
            if 0 <= e < E:
                gate, value = (up[e] @ x[t]).chunk(2)
                y[t] += w * (down[e] @ (torch.nn.functional.silu(gate) * value))
            elif e == 5:
                y[t] += w * x[t]
            elif e >= 6:
                a = (zero.gates[e - 6] @ x[t]).softmax(0)
                y[t] += w * (a[0] * x[t] + a[1] * zero.vectors[e - 6])
    return y


def test_with_fused_experts_against_the_definition() -> None:
    zero, (up, down) = make(), experts()
    assert zero.total_experts == 8
    x = torch.randn(T, H, dtype=torch.float64)
    weights, ids, _ = Router(LinearLogits(H, zero.total_experts), TopK(8, 4))(x)
    assert expert_counts(ids, zero.total_experts).sum() == 4 * T
    y = fused_experts(x, up, down, weights, zero.real_ids(ids)) + zero(x, weights, ids)
    torch.testing.assert_close(y, one_by_one(zero, up, down, x, weights, ids))


def test_real_ids() -> None:
    ids = torch.tensor([[0, 2, 3], [7, 1, -1]], dtype=torch.int32)
    real = make().real_ids(ids)
    assert real.tolist() == [[0, 2, -1], [-1, 1, -1]]
    assert real.dtype == torch.int32


def test_only_null_experts_leave_nothing() -> None:
    zero, (up, down) = make(), experts()
    x = torch.randn(2, H, dtype=torch.float64)
    ids = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32)
    weights = torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    normal = zero.renormalize(weights, ids)
    y = fused_experts(x, up, down, normal, zero.real_ids(ids)) + zero(x, normal, ids)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_renormalised_over_what_is_not_null() -> None:
    weights = torch.tensor([[0.4, 0.3, 0.1], [0.5, 0.2, 0.3]], dtype=torch.float64)
    ids = torch.tensor([[0, 3, 2], [5, 4, -1]], dtype=torch.int32)
    torch.testing.assert_close(
        make().renormalize(weights, ids), torch.tensor([[0.8, 0, 0.2], [1.0, 0, 0]], dtype=torch.float64)
    )


def test_without_constant_experts_there_are_no_parameters() -> None:
    zero = ZeroComputationExperts(E, H, num_copy=2)
    assert not list(zero.parameters())
    x = torch.randn(4, H)
    weights, ids = torch.rand(4, 2), torch.tensor([[3, 4], [0, 3], [1, 2], [-1, 4]], dtype=torch.int32)
    expected = torch.stack([weights[0].sum(), weights[1, 1], torch.tensor(0.0), weights[3, 1]])[:, None] * x
    torch.testing.assert_close(zero(x, weights, ids), expected)


def test_gradcheck() -> None:
    zero = make()
    ids = torch.tensor([[0, 5, 6], [7, 3, 5], [6, 7, -1]], dtype=torch.int32)
    x = torch.randn(3, H, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)

    def y(x, weights, vectors, gates):
        arguments = (x, zero.renormalize(weights, ids), ids)
        return torch.func.functional_call(zero, {"vectors": vectors, "gates": gates}, arguments)

    assert torch.autograd.gradcheck(y, (x, weights, zero.vectors, zero.gates))


def test_bfloat16() -> None:
    zero = make()
    x = torch.randn(T, H).bfloat16()
    weights, ids = torch.rand(T, 3), torch.randint(0, 8, (T, 3), dtype=torch.int32)
    exact = zero(x.double(), weights.double(), ids)
    y = zero.bfloat16()(x, weights, ids)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, atol=0.01, rtol=2**-7)


def test_compiles_as_one_graph() -> None:
    zero = make()
    x, ids = torch.randn(T, H, dtype=torch.float64), torch.randint(0, 8, (T, 3), dtype=torch.int32)
    weights = torch.rand(T, 3, dtype=torch.float64)
    compiled = torch.compile(zero, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weights, ids), zero(x, weights, ids))


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_copy must be at least 0"):
        ZeroComputationExperts(E, H, num_copy=-1)
    with pytest.raises(ValueError, match="are all 0"):
        ZeroComputationExperts(E, H)
    with pytest.raises(ValueError, match=r"x must be \[T, 6\]"):
        make()(torch.zeros(2, H + 1), torch.zeros(2, 1), torch.zeros(2, 1).int())
