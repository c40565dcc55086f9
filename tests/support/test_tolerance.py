"""The judge itself: right results pass, planted faults do not."""

import pytest
import torch
from torch import Tensor

from tests.support.tolerance import TILE, assert_close_to_truth, assert_same_bits, cosine_distance, tile_rms


def result(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    """A float64 truth of unit variance and its best approximation in a dtype."""
    truth = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return truth, truth.to(dtype)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (37, 29), (3, 40, 17), (1, 5), (200,), (0, 8), (4, 0, 8)], ids=str)
def test_the_rounded_truth_passes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    truth, rounded = result(dtype, *shape)
    assert_close_to_truth(rounded, truth, rounded, "rounded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", ["one value", "sign", "scale", "zero tile", "swapped rows", "nan"])
def test_planted_faults_fail(dtype: torch.dtype, fault: str) -> None:
    truth, rounded = result(dtype, 64, 64)
    wrong = rounded.clone()
    if fault == "one value":
        wrong[13, 50] += 0.2
    elif fault == "sign":
        wrong = -wrong
    elif fault == "scale":
        wrong = wrong * 1.05
    elif fault == "zero tile":
        wrong[16:32, 32:48] = 0
    elif fault == "swapped rows":
        wrong[[3, 4]] = wrong[[4, 3]]
    else:
        wrong[63, 63] = float("nan")
    with pytest.raises(AssertionError, match=r"^y"):
        assert_close_to_truth(wrong, truth, rounded, "y")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "place", [(slice(16, 32), slice(32, 48)), (slice(84, 100), slice(75, 91))], ids=["inner", "edge"]
)
def test_a_tile_spoiled_by_errors_that_each_stay_small_stands_out(
    dtype: torch.dtype, place: tuple[slice, slice]
) -> None:
    truth, rounded = result(dtype, 100, 91)
    spoiled = rounded.double()
    spoiled[place] += 1.9 * (rounded.double() - truth).abs().max()
    with pytest.raises(AssertionError) as failure:
        assert_close_to_truth(spoiled.to(dtype), truth, rounded, "y")
    assert "1 - cosine" not in str(failure.value)
    assert "stand out" in str(failure.value)


def test_a_unit_in_the_last_place_passes_even_where_the_reference_is_exact() -> None:
    truth, rounded = result(torch.bfloat16, 64, 64)
    truth[5, 5] = rounded[5, 5] = 100.0  # far larger than all others, and represented exactly
    off = rounded.clone()
    off[5, 5] = 100.5
    assert_close_to_truth(off, truth, rounded, "y")
    off[5, 5] = 101.0
    with pytest.raises(AssertionError, match="largest error"):
        assert_close_to_truth(off, truth, rounded, "y")


def test_wrong_direction_of_small_results() -> None:
    """Errors below the slack of the largest value are still found where all values are small."""
    truth, _ = result(torch.float64, 32, 32)
    truth = truth * 5e-5
    with pytest.raises(AssertionError, match="cosine"):
        assert_close_to_truth(truth.float() + 8e-6, truth, truth.float(), "y")


def test_non_finite_values_must_stand_where_the_truth_has_them() -> None:
    truth, rounded = result(torch.float32, 8, 8)
    for value in (float("nan"), float("inf"), float("-inf")):
        truth[2, 3] = value
        assert_close_to_truth(truth.float(), truth, truth.float(), "y")
        with pytest.raises(AssertionError, match="finite on one side"):
            assert_close_to_truth(rounded, truth, truth.float(), "y")


def test_tiles_are_full_at_the_edges() -> None:
    error = torch.zeros(40, 35, dtype=torch.float64)
    error[39, 34] = TILE  # in the last tile alone, one of 256 values
    rms = tile_rms(error)
    assert rms.shape == (3, 3)
    assert rms[2, 2] == 1
    assert rms.sum() == 1
    assert tile_rms(torch.ones(2, 1000, dtype=torch.float64)).shape == (1, 8)
    assert tile_rms(torch.ones(5, 7, 3, dtype=torch.float64)).shape == (1, 1)


def test_cosine_distance() -> None:
    assert cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 1
    assert cosine_distance(torch.zeros(2), torch.zeros(2)) == 0
    assert cosine_distance(torch.zeros(2), torch.ones(2)) == 1


def test_same_bits() -> None:
    values = torch.tensor([[1.0, float("nan")], [0.0, -2.0]])
    assert_same_bits(values, values.clone(), "y")
    assert_same_bits(values[:, :0], values[:, :0], "nothing")
    other = values.clone()
    other[1, 0] = -0.0
    with pytest.raises(AssertionError, match=r"1 of 4 values differ in their bits, the first at \(1, 0\)"):
        assert_same_bits(other, values, "y")
