import pytest
import torch

from tests.support.cases import CASES, SMALL_CASES, Case, case
from tests.support.inputs import make_inputs, strided_variants


def test_names_are_unique() -> None:
    for cases in (CASES, SMALL_CASES):
        assert len({each.name for each in cases}) == len(cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases_repeat_themselves(case: Case) -> None:
    first, second = make_inputs(case, bias=True).tensors(), make_inputs(case, bias=True).tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unit_variance() -> None:
    inputs = make_inputs(case("around_tile_128"))
    assert inputs.x.std().item() == pytest.approx(1, abs=0.035)
    assert inputs.w_gate_up.std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert inputs.w_down.std().item() == pytest.approx(32**-0.5, rel=0.03)


def test_counts_around_a_tile() -> None:
    assert torch.bincount(case("around_tile_16").topk_ids().flatten()).tolist() == [15, 16, 17]


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_strided_variants_hold_the_same_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (torch.randn(shape) * 100).to(dtype)
    layouts = set()
    for name, variant in strided_variants(tensor):
        assert torch.equal(variant, tensor), name
        assert variant.dtype == dtype
        layouts.add((variant.stride(), variant.storage_offset()))
    if tensor.numel():
        assert len(layouts) >= {1: 3, 2: 6, 3: 7}[tensor.dim()]
