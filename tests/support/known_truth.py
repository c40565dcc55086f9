"""Checks one problem on many backends, computing the truth once, on the CPU.

``check_against_truth`` of tests.support does the same for a single run; on many backends most of its time would go
into repeating the reference.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tests.support.backends import Backend
from tests.support.tolerance import assert_close_to_truth
from tests.support.truth import ENOUGH_VALUES, MOST_DRAWS, coarsest_dtype, run_on, run_with_gradients

# Of all draws of one problem together: three copies of each are held, one of them in float64.
MOST_VALUES = 2**23


class Problem(Hashable, Protocol):
    """A recipe for tensors: equal recipes make equal tensors."""

    @property
    def options(self) -> Mapping[str, Any]: ...

    def tensors(self, seed: int) -> dict[str, Tensor]: ...


Results = dict[str, Tensor]
_known: dict[tuple[Any, Problem, int], tuple[Results, Results]] = {}


def check_with_known_truth(
    backend: Backend, function: Callable[..., Any], reference: Callable[..., Any], problem: Problem
) -> None:
    """Assert that outputs and gradients of ``function`` on a backend are close to the truth.

    See ``check_against_truth``.
    """
    draws: list[tuple[Results, Results, Results]] = []
    num_draws = 1
    while len(draws) < num_draws:
        seed = len(draws)
        tensors = problem.tensors(seed)
        same_dtype, truth = _truth(reference, problem, seed, tensors)
        draws.append((run_on(backend, function, tensors, seed=seed, **problem.options), same_dtype, truth))
        dtype = coarsest_dtype(tensors.values())
        if torch.finfo(dtype).bits <= 32:  # gradients of routing weights are some tens: more luck than float32's slack
            sizes = [value.numel() for value in same_dtype.values() if value.numel()]
            num_draws = (
                min(MOST_DRAWS, -(-ENOUGH_VALUES // min(sizes)), max(1, MOST_VALUES // sum(sizes))) if sizes else 1
            )
    for key in draws[0][0]:
        actual, same_dtype_value, truth_value = (torch.stack([run[i][key] for run in draws]) for i in range(3))
        assert_close_to_truth(actual, truth_value, same_dtype_value, key, dtype=dtype)


def _truth(
    reference: Callable[..., Any], problem: Problem, seed: int, tensors: dict[str, Tensor]
) -> tuple[Results, Results]:
    key = (reference, problem, seed)
    if key not in _known:
        same_dtype = run_with_gradients(reference, tensors, seed=seed, **problem.options)
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        upstream_dtype = same_dtype["output"].dtype
        truth = run_with_gradients(reference, wide, seed=seed, upstream_dtype=upstream_dtype, **problem.options)
        _known[key] = same_dtype, truth
    return _known[key]


def forget() -> None:
    """Frees what is known: called when a test module is done."""
    _known.clear()
