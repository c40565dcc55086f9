"""Expert outputs of length 1 before they are combined (kexue.fm/archives/10699)."""

import pytest
import torch

from moe_ext import combine, permute
from moe_ext.routing import normalize_rows

V = torch.tensor([[3.0, 4.0], [0.0, 2.0]])


def test_worked_example_through_combine() -> None:
    permutation = permute(torch.tensor([[0, 1]], dtype=torch.int32), 2)
    y = combine(normalize_rows(V), torch.tensor([[0.5, 1.5]]), permutation)
    torch.testing.assert_close(y, torch.tensor([[0.3, 1.9]]), atol=1e-6, rtol=0)


def test_rms() -> None:
    torch.testing.assert_close(normalize_rows(V, to="rms"), 2**0.5 * normalize_rows(V))
    expected = torch.nn.functional.rms_norm(V, (2,), eps=1e-12)
    torch.testing.assert_close(normalize_rows(V, to="rms"), expected)


def test_length_and_direction() -> None:
    rows = torch.randn(20, 16)
    unit = normalize_rows(rows)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(unit, rows), torch.ones(20))
    torch.testing.assert_close(normalize_rows(7 * rows), unit)


def test_rows_of_zeros_stay_and_have_finite_gradients() -> None:
    rows = torch.zeros(2, 4, requires_grad=True)
    y = normalize_rows(rows)
    assert torch.equal(y, torch.zeros(2, 4))
    y.sum().backward()
    assert rows.grad.isfinite().all()


def test_bfloat16_is_rounded_once() -> None:
    rows = torch.randn(20, 64).bfloat16()
    assert torch.equal(normalize_rows(rows), normalize_rows(rows.float()).bfloat16())


def test_gradcheck() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_rows, rows)
    assert torch.autograd.gradcheck(lambda v: normalize_rows(v, to="rms"), rows)


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(normalize_rows, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(V), normalize_rows(V))


def test_errors() -> None:
    with pytest.raises(ValueError, match="to must be one of"):
        normalize_rows(V, to="max")
    with pytest.raises(ValueError, match="eps must be greater than 0"):
        normalize_rows(V, eps=0.0)
    with pytest.raises(TypeError, match="rows must be"):
        normalize_rows(V.long())
