"""When is a result close enough to the truth?

Never "within 1e-2". The truth is computed in float64 from the same, already rounded, inputs. The yardstick is the
error that plain PyTorch makes on them in the dtype under test. A result passes when

1. its largest error is below twice the yardstick's largest error, plus a small absolute slack. An error below
   epsilon times the true value (a unit in its last place, at the least) is never too large: the largest error stands
   at the few largest values, and there the reference may round well by luck;
2. its direction is right: 1 - cosine similarity with the truth is below a bound of the dtype (where even the
   reference strays further, as sums of few values that cancel do: below four times its distance, which is twice
   its angle);
3. no 16 x 16 tile of it stands out: the root-mean-square error of each tile stays below four times that of the
   yardstick in the same tile, of the yardstick overall, or of rounding the true tile, whichever is largest, plus the
   slack. The largest error of thousands of values is itself four or five times their root-mean-square error, so a
   tile spoiled all over by errors that each pass test 1 fails here. Twice would be too narrow: the errors of a weight
   gradient that comes from few rows hang together, so 256 of them are not 256 samples.

Inputs should have unit variance and weights 1/sqrt(fan_in) (``tests.support.inputs``), so that outputs are O(1) and
the slack means the same everywhere. The yardstick is a sample: from a handful of values it may be small by luck and
fail a right result. ``tests.support.truth`` pools several draws of inputs until there are enough.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 16
FACTOR = 2.0
TILE_FACTOR = 4.0

# Absolute slack. For float64 the yardstick is the truth itself, so the slack is all there is.
SLACK = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}

# 1 - cosine is half the squared relative error. Over all cases and gradients of fused_experts, 99 % of the distances
# of the reference itself lie below 2e-15, 4e-14, 2e-7 and 1.2e-5; float32 gets more room because a kernel may
# approximate the exponential to a few units in the last place.
COSINE_BOUND = {torch.float64: 1e-13, torch.float32: 1e-11, torch.float16: 1e-6, torch.bfloat16: 5e-5}


@dataclass(frozen=True)
class Comparison:
    """The three measures and their limits. ``failures`` says in words which are exceeded."""

    max_error: float
    max_error_limit: float
    cosine_distance: float
    cosine_limit: float
    worst_tile_ratio: float  # error / limit, passes below 1
    failures: tuple[str, ...]


def assert_close_to_truth(
    actual: Tensor,
    truth64: Tensor,
    same_dtype_reference: Tensor,
    name: str,
    *,
    dtype: torch.dtype | None = None,
) -> Comparison:
    """Assert all three tests.

    Where the truth is NaN or infinite, the result must be the same; everywhere else it must be finite.

    Args:
        actual: the result under test.
        truth64: the float64 reference on the same inputs, same shape.
        same_dtype_reference: the plain PyTorch computation in the dtype of ``actual``, same shape.
        name: what the result is, for the message.
        dtype: of the data that the result was computed from, where that is coarser than the result itself (the
            float32 gradient of routing weights under bfloat16 data); None is the dtype of ``actual``.

    Returns:
        What was measured.

    Raises:
        AssertionError: with the measures, their limits and where the worst element or tile stands.
    """
    assert truth64.dtype == torch.float64, f"{name}: the truth must be float64, got {truth64.dtype}"
    assert actual.dtype == same_dtype_reference.dtype, f"{name}: {actual.dtype} against {same_dtype_reference.dtype}"
    assert actual.shape == truth64.shape == same_dtype_reference.shape, (
        f"{name}: shapes differ: actual {tuple(actual.shape)}, truth {tuple(truth64.shape)}, "
        f"reference {tuple(same_dtype_reference.shape)}"
    )
    dtype = dtype or actual.dtype
    actual, truth, reference = (t.detach().cpu().double() for t in (actual, truth64, same_dtype_reference))
    actual, truth, reference = _drop_nonfinite(actual, truth, reference, name)
    result = compare(actual, truth, reference, dtype)
    assert not result.failures, f"{name} ({dtype}, {tuple(truth.shape)}):\n  " + "\n  ".join(result.failures)
    return result


def compare(actual: Tensor, truth: Tensor, reference: Tensor, dtype: torch.dtype) -> Comparison:
    """The measures of finite float64 tensors whose values came from ``dtype``."""
    slack = SLACK[dtype]
    if truth.numel() == 0:
        return Comparison(0.0, slack, 0.0, COSINE_BOUND[dtype], 0.0, ())
    failures = []
    error, yardstick = (actual - truth).abs(), (reference - truth).abs()

    max_error, limit = error.max().item(), FACTOR * yardstick.max().item() + slack
    excess = torch.where(error < torch.finfo(dtype).eps * truth.abs(), 0.0, error)
    if excess.max().item() >= limit:
        at = _position(int(excess.argmax()), error.shape)
        failures.append(
            f"largest error {error[at].item():.3e} at {at} (got {actual[at].item():.6g}, "
            f"truth {truth[at].item():.6g}), limit {limit:.3e}, reference errs by {yardstick.max().item():.3e}"
        )

    cosine, cosine_limit = 0.0, max(COSINE_BOUND[dtype], FACTOR**2 * cosine_distance(reference, truth))
    if truth.square().mean().sqrt().item() > slack:  # values below the slack are noise, and noise has no direction
        cosine = cosine_distance(actual, truth)
    if cosine >= cosine_limit:
        failures.append(f"1 - cosine similarity {cosine:.3e}, limit {cosine_limit:.3e}")

    tiles, overall = tile_rms(error), yardstick.square().mean().sqrt().item()
    rounding = torch.finfo(dtype).eps / 12**0.5 * tile_rms(truth)  # of values just above a power of two
    ratio = tiles / (TILE_FACTOR * torch.maximum(tile_rms(yardstick), rounding).clamp(min=overall) + slack)
    worst = ratio.max().item()
    if worst >= 1:
        at = _position(int(ratio.argmax()), ratio.shape)
        count = int((ratio >= 1).sum())
        failures.append(
            f"{count} of {ratio.numel()} tiles stand out, worst is {at}: error {tiles[at].item():.3e}, "
            f"{worst:.2f} times its limit"
        )
    return Comparison(max_error, limit, cosine, cosine_limit, worst, tuple(failures))


def cosine_distance(actual: Tensor, truth: Tensor) -> float:
    """1 - cosine similarity of two tensors taken as vectors; 0 if both are zero, 1 if only one is."""
    norms = actual.norm() * truth.norm()
    if norms == 0:
        return float((actual != 0).any() or (truth != 0).any())
    return max(0.0, 1.0 - float((actual * truth).sum() / norms))


def tile_rms(error: Tensor) -> Tensor:
    """Root-mean-square of each tile of the last two dimensions, ``[..., tile rows, tile columns]``.

    Tiles are 16 x 16. In matrices of fewer than 16 rows they are wider, in those of fewer than 16 columns higher, to
    hold 256 values all the same; for that reason the last tile is moved back to lie inside, too.
    """
    squares = _as_matrices(error).square()
    rows, columns = squares.shape[-2:]
    height = min(TILE, rows)
    width = min(TILE * TILE // height, columns)
    height = min(TILE * TILE // width, rows)
    for dim, size, step in ((-2, rows, height), (-1, columns, width)):
        starts = [min(start, size - step) for start in range(0, size, step)]
        squares = torch.stack([squares.narrow(dim, start, step).mean(dim) for start in starts], dim)
    return squares.sqrt()


def assert_same_bits(actual: Tensor, expected: Tensor, name: str) -> None:
    """Assert equality bit by bit: NaN equals the same NaN, and 0 does not equal -0."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} against {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} against {tuple(expected.shape)}"
    first, second = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (actual, expected))
    per_value = actual.element_size()
    differs = (first != second).view(-1, per_value).any(1) if first.numel() else first.bool()
    if differs.any():
        at = _position(int(differs.nonzero()[0]), actual.shape)
        raise AssertionError(
            f"{name}: {int(differs.sum())} of {differs.numel()} values differ in their bits, the first at {at}: "
            f"{actual[at].item()!r} against {expected[at].item()!r}"
        )


def _drop_nonfinite(actual: Tensor, truth: Tensor, reference: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Check the positions where the truth isn't finite and set them to zero in all three."""
    finite = truth.isfinite()
    assert reference[finite].isfinite().all(), f"{name}: the reference overflows where the truth is finite"
    same = (actual == truth) | (actual.isnan() & truth.isnan())
    wrong = torch.where(finite, ~actual.isfinite(), ~same)
    if wrong.any():
        at = _position(int(wrong.flatten().nonzero()[0]), wrong.shape)
        raise AssertionError(
            f"{name}: {int(wrong.sum())} values are finite on one side only, the first at {at}: "
            f"got {actual[at].item()}, truth {truth[at].item()}"
        )
    return tuple(torch.where(finite, t, 0.0) for t in (actual, truth, reference))  # type: ignore[return-value]


def _as_matrices(values: Tensor) -> Tensor:
    """At least two dimensions; matrices of less than a tile are put one below the other."""
    if values.dim() < 2:
        return values.reshape(1, -1)
    if values.shape[-2] * values.shape[-1] < TILE * TILE:
        return values.flatten(0, -2)
    return values


def _position(flat: int, shape: torch.Size) -> tuple[int, ...]:
    position: list[int] = []
    for size in reversed(shape):
        position.insert(0, flat % size)
        flat //= size
    return tuple(position)
