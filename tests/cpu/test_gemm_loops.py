"""Grouped products at the edges of tiles, panels, blocks and jobs, on small integers.

Every sum is exact then, so nothing but the one rounding of the result may happen, on any instruction set and in any
order.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moe_ext
from moe_ext import _C
from tests.support.backends import pinned

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around tiles of 16, panels of 32, jobs of 512 rows.
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 97, 127, 129, 255, 256, 257, 288, 300)
ROWS = (*EDGES, 511, 512, 513, 600)


def _integers(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("isa", _C.cpu_isas_available())
@given(
    counts=st.lists(st.one_of(st.just(0), st.sampled_from(ROWS)), min_size=1, max_size=3),
    k=st.sampled_from(EDGES),
    n=st.sampled_from(EDGES),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
    gathered=st.booleans(),
)
def test_products_and_gradients_are_exact(isa, counts, k, n, dtype, transposed, gathered):
    num_rows = sum(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    rows = _integers(max(num_rows, 1), k, dtype=dtype, seed=1)
    weight = _integers(len(counts), n, k, dtype=dtype, seed=2)
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    upstream = _integers(num_rows, n, dtype=dtype, seed=3)
    gather = torch.randperm(num_rows, generator=torch.Generator().manual_seed(4)).to(torch.int32) if gathered else None
    if not gathered:
        rows = rows[:num_rows]
    with pinned(isa):
        leaves = (rows.clone().requires_grad_(), weight.detach().requires_grad_())
        out = moe_ext.grouped_gemm(*leaves, offsets, gather=gather)
        grad_rows, grad_weight = torch.autograd.grad(out, leaves, upstream)

    taken = rows.double() if gather is None else rows.double()[gather.long()]
    expected_rows = torch.zeros(num_rows, k, dtype=torch.float64)
    for expert, (begin, end) in enumerate(zip(offsets.tolist()[:-1], offsets.tolist()[1:], strict=True)):
        own = weight[expert].double()
        assert torch.equal(out[begin:end].double(), (taken[begin:end] @ own.T).to(dtype).double())
        expected_rows[begin:end] = upstream[begin:end].double() @ own
        expected = (upstream[begin:end].double().T @ taken[begin:end]).to(dtype)
        assert torch.equal(grad_weight[expert], expected), f"weight gradient of expert {expert}"
    expected_grad = torch.zeros_like(rows)
    expected_grad[slice(0, num_rows) if gather is None else gather.long()] = expected_rows.to(dtype)
    assert torch.equal(grad_rows, expected_grad)
