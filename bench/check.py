"""Is a contender right? Output and gradients against the float64 truth, as a whole and tile by tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.problem import Layer, Problem, Truth

_TILE: Final = 16
_CHUNK_NUMEL: Final = 1 << 26


@dataclass(frozen=True)
class Bounds:
    """Largest allowed relative error: of the output, of a gradient, and of the worst 16x16 tile of either."""

    output: float
    grad: float
    tile: float


# Plain PyTorch's errors are about half of these in bfloat16 and a seventh in float32, where the order of a sum of
# thousands of products decides.
BOUNDS: Final[dict[torch.dtype, Bounds]] = {
    torch.bfloat16: Bounds(output=1e-2, grad=1.2e-2, tile=3e-2),
    torch.float32: Bounds(output=5e-6, grad=5e-6, tile=1e-5),
}


@dataclass(frozen=True)
class TensorError:
    """`relative`: ||got - truth|| / ||truth||. `tile`: the largest RMS error of a 16x16 tile, over the RMS of the
    truth in that tile or in the whole tensor, whichever is larger."""

    relative: float
    tile: float


def _tile_mean_squares(values: Tensor) -> Tensor:
    """[B,N,C] -> mean square of each tile; a tile cut by the border counts what it has."""
    return F.avg_pool2d(values.square(), _TILE, ceil_mode=True)


@torch.no_grad()
def compare(got: Tensor, truth: Tensor) -> TensorError:
    """Error of `got` (any dtype) against `truth` (float32), both [N,C] or [E,N,C]; inf if any isn't finite."""
    if got.shape != truth.shape:
        return TensorError(math.inf, math.inf)
    got, truth = (t.unsqueeze(0) if t.dim() == 2 else t for t in (got, truth))
    step = max(1, _CHUNK_NUMEL // max(1, truth[0].numel()))
    truth_square = math.fsum(float(part.double().square().sum()) for part in torch.split(truth, step))
    mean_square = truth_square / truth.numel()
    error_square, tile_square = 0.0, 0.0
    for got_part, truth_part in zip(torch.split(got, step), torch.split(truth, step), strict=True):
        error = got_part.float() - truth_part
        if not bool(error.isfinite().all()):
            return TensorError(math.inf, math.inf)
        error_square += float(error.double().square().sum())
        scale = _tile_mean_squares(truth_part).clamp_min(mean_square)
        tile_square = max(tile_square, float((_tile_mean_squares(error) / scale).max()))
    return TensorError(math.sqrt(error_square / truth_square), math.sqrt(tile_square))


def evaluate(layer: Layer, problem: Problem, truth: Truth) -> dict[str, TensorError]:
    """Errors by tensor name: `y`, and `grad <leaf>` where the truth has gradients."""
    if truth.grads is None:
        with torch.no_grad():
            return {"y": compare(layer(problem.x), truth.y)}
    leaves = problem.leaves
    y = layer(problem.x)
    grads = torch.autograd.grad(y, list(leaves.values()), problem.grad_y)
    errors = {"y": compare(y.detach(), truth.y)}
    for name, grad in zip(leaves, grads, strict=True):
        errors[f"grad {name}"] = compare(grad, truth.grads[name])
    return errors


def faults(errors: dict[str, TensorError], bounds: Bounds) -> Sequence[str]:
    """One sentence for each tensor past its bound; empty when the contender is right."""
    found = []
    for name, error in errors.items():
        limit = bounds.output if name == "y" else bounds.grad
        # "not <=" so that NaN is a fault.
        if not error.relative <= limit:
            found.append(f"{name}: relative error {error.relative:.2g} > {limit:g}")
        elif not error.tile <= bounds.tile:
            found.append(f"{name}: worst 16x16 tile {error.tile:.2g} > {bounds.tile:g}")
    return found
