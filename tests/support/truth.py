"""Runs a function under test, the reference in the same dtype and the reference in float64, and compares.

One call checks the outputs and every gradient:

    draw = lambda seed: make_inputs(case, torch.bfloat16, activation="geglu", seed=seed).tensors()
    check_against_truth(
        moe_ext.fused_experts, moe_ext.reference.fused_experts, draw, backend=backend, activation="geglu"
    )
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.backends import Backend
from tests.support.tolerance import assert_close_to_truth

# So many values make a yardstick; see tests.support.tolerance.
ENOUGH_VALUES = 512
MOST_DRAWS = 64


def run_with_gradients(
    function: Callable[..., Any],
    tensors: Mapping[str, Tensor],
    *,
    gradients_of: Iterable[str] | None = None,
    seed: int = 0,
    upstream_dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Call ``function(**tensors, **options)`` and differentiate its first floating output.

    The gradient that flows in has unit variance and the same values, up to rounding, whatever the dtype.

    Args:
        function: returns a tensor or a tuple of tensors.
        tensors: its tensor arguments by name, with whatever strides.
        gradients_of: which to differentiate by; None is all floating ones.
        seed: of the gradient that flows in.
        upstream_dtype: that gradient is rounded to this dtype first; None is the dtype of the output.
        options: its other arguments.

    Returns:
        ``output`` (or ``output_0``, ``output_1``, ...) and ``grad_<name>`` for each input.
    """
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    wanted = list(floating if gradients_of is None else gradients_of)
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()}
    returned = function(**leaves, **options)
    outputs = (returned,) if isinstance(returned, Tensor) else tuple(returned)
    named = {"output" if len(outputs) == 1 else f"output_{i}": output.detach() for i, output in enumerate(outputs)}
    if wanted:
        first = next(output for output in outputs if output.is_floating_point())
        upstream = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed + 1))
        upstream = upstream.to(upstream_dtype or first.dtype).to(first)
        gradients = torch.autograd.grad(first, [leaves[name] for name in wanted], upstream)
        named.update({f"grad_{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)})
    return named


def run_on(
    backend: Backend | None, function: Callable[..., Any], tensors: Mapping[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """``run_with_gradients`` of CPU tensors on a backend; None: where they are. The results are on the CPU."""
    given = tensors if backend is None else backend.put(tensors)
    return {name: result.cpu() for name, result in run_with_gradients(function, given, **options).items()}


def check_against_truth(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: Mapping[str, Tensor] | Callable[[int], Mapping[str, Tensor]],
    *,
    backend: Backend | None = None,
    name: str = "",
    gradients_of: Iterable[str] | None = None,
    reference_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Assert that outputs and gradients of ``function`` are close to the truth.

    Args:
        function: what is under test.
        reference: the plain PyTorch function that takes the same arguments.
        tensors: their tensor arguments by name, in the dtype under test; or a function that draws them from a seed,
            always of the same shapes. It is called with 0, 1, ... until the smallest result has had
            ``ENOUGH_VALUES`` values, and all draws are judged as one. Small problems in float16 and bfloat16 need
            it; with finer dtypes one draw is enough, as the slack is wider than their luck.
        backend: where ``function`` runs; its tensors are put there. None leaves them where they are.
        name: goes before the name of the output in messages.
        gradients_of: which inputs to differentiate by; None is all floating ones.
        reference_options: options for the reference where it takes others.
        options: their other arguments.
    """
    slow_options = options if reference_options is None else dict(reference_options)
    wanted = None if gradients_of is None else list(gradients_of)
    results: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    num_draws = 1
    while len(results) < num_draws:
        seed = len(results)
        drawn = tensors(seed) if callable(tensors) else tensors
        actual = run_on(backend, function, drawn, gradients_of=wanted, seed=seed, **options)
        same_dtype = run_with_gradients(reference, drawn, gradients_of=wanted, seed=seed, **slow_options)
        truth = run_with_gradients(
            reference,
            {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in drawn.items()},
            gradients_of=wanted,
            seed=seed,
            upstream_dtype=next(value.dtype for value in same_dtype.values() if value.is_floating_point()),
            **slow_options,
        )
        assert actual.keys() == same_dtype.keys()
        results.append((actual, same_dtype, truth))
        dtype = coarsest_dtype(drawn.values())
        if callable(tensors) and torch.finfo(dtype).bits == 16:
            num_draws = _draws_needed(same_dtype)

    for key, value in results[0][0].items():
        label = f"{name} {key}".strip()
        actual_draws, same_dtype_draws, truth_draws = (
            [which[key] for which in draws] for draws in zip(*results, strict=True)
        )
        if value.is_floating_point():
            assert_close_to_truth(_pool(actual_draws), _pool(truth_draws), _pool(same_dtype_draws), label, dtype=dtype)
        else:
            assert all(map(torch.equal, actual_draws, same_dtype_draws)), f"{label}: integers differ"


def _draws_needed(result: Mapping[str, Tensor]) -> int:
    sizes = [tensor.numel() for tensor in result.values() if tensor.is_floating_point() and tensor.numel()]
    return min(MOST_DRAWS, -(-ENOUGH_VALUES // min(sizes))) if sizes else 1


def _pool(draws: list[Tensor]) -> Tensor:
    return draws[0] if len(draws) == 1 else torch.stack(draws)


def coarsest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The floating dtype with the fewest digits: it sets the precision of whatever is computed from them."""
    return max((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps)
