"""Derivatives for the raw ops: reverse mode everywhere, a clear refusal of forward mode.

The derivative of an op is a ``setup_context`` and a ``backward`` over registered ops. From them one
``torch.autograd.Function`` is made, and the Autograd kernel of the op applies it. So ``torch.ops.moe_ext.*`` and the
public functions differentiate alike, in eager mode, under ``torch.compile`` and ``torch.export`` and inside the
transforms of ``torch.func``. ``torch.library.register_autograd`` does all that but the last: the function that it
generates cannot be transformed.

Forward-mode AD has no formula here. Left alone, PyTorch would return a zero tangent for a custom op without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import forward_ad

from . import _autocast
from ._library import LIBRARY, NAMESPACE, raw


def differentiable(
    name: str,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    autocast: Sequence[int] = (),
) -> torch._ops.OpOverload:
    """Registers the derivative of ``moe_ext::<name>`` and returns the op.

    Args:
        name: the op, without its namespace.
        setup_context: ``(ctx, inputs, output)``; keeps tensors with ``ctx.save_for_backward`` only.
        backward: ``(ctx, *grads) -> grad of every input``. An undefined gradient arrives as None.
        autocast: positions of the arguments that autocast lowers.
    """
    op = raw(name)
    _set_setup_context = setup_context
    _run_backward = backward

    class Formula(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            # Outputs that only serve backward (the kept pre-activation) would otherwise be given zeros as gradients.
            ctx.set_materialize_grads(False)
            _set_setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            # Forward has decided the dtypes; a backward pass inside an autocast region must not change them.
            with _autocast.disabled():
                return _run_backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            _refuse_forward_mode(name)

    def kernel(keyset: DispatchKeySet, *args: Any) -> Any:
        if _forward_mode_is_on() and any(_has_tangent(arg) for arg in args):
            _refuse_forward_mode(name)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            with _as_called_by_the_user():
                return Formula.apply(*args)
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return Formula.apply(*args)
        return below_autograd(op, keyset, *args)

    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
    if autocast:
        _autocast.register(name, autocast)
    return op


def differentiable_once(name: str) -> torch._ops.OpOverload:
    """Marks ``moe_ext::<name>``, itself the backward of an op, as one that cannot be differentiated again."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise NotImplementedError(f"{NAMESPACE}::{name}: double backward is not supported")

    return differentiable(name, setup_context=setup_context, backward=backward)


def call(op: torch._ops.OpOverload, *args: Any) -> Any:
    """``op(*args)``, past the Autograd kernel where that has nothing to do.

    The Autograd kernel is Python, and takes longer than the op itself when there are few tokens. What it is for are
    gradients, tangents, transforms and tracing; without any of them, plain tensors go straight to the computation.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _forward_mode_is_on()
        or not _are_plain(args)
    ):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _are_plain(args: Sequence[Any]) -> bool:
    """No tensor is of a subclass other than Parameter, and none needs a gradient."""
    records = torch.is_grad_enabled()
    for arg in args:
        kind = type(arg)
        if kind in _PLAIN_TENSORS:
            if records and arg.requires_grad:
                return False
        elif kind not in _NO_TENSORS and isinstance(arg, Tensor):
            return False
    return True


_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
# Asking isinstance of each of a dozen options would take as long as the rest.
_NO_TENSORS = frozenset((type(None), bool, int, float, str))


def below_autograd(op: torch._ops.OpOverload, keyset: DispatchKeySet, *args: Any) -> Any:
    """Goes on from the Autograd kernel of ``op`` to its computation."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _forward_mode_is_on() -> bool:
    # Spares every other call the search for tangents; should the attribute go, the search is just made always.
    return getattr(forward_ad, "_current_level", 0) >= 0


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _refuse_forward_mode(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{NAMESPACE}::{name} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad); "
        "use reverse mode"
    )


def _keys(*keys: DispatchKey) -> DispatchKeySet:
    return functools.reduce(DispatchKeySet.__or__, map(DispatchKeySet, keys))


_TRANSFORM_MODES = _keys(DispatchKey.FuncTorchDynamicLayerFrontMode, DispatchKey.FuncTorchDynamicLayerBackMode)
_AUTOCAST = _keys(*(key for name, key in DispatchKey.__members__.items() if name.startswith("Autocast")))


def _as_called_by_the_user() -> Any:
    """Context that undoes what a ``torch.func`` transform did to the dispatcher on the way to an Autograd kernel.

    A transform handles an op by calling its kernels with its own dispatch keys and several others switched off. But
    an autograd.Function looks for the transform itself and expects to be applied before all that. Only the choice of
    autocast modes is the user's.
    """
    included = torch._C._dispatch_tls_local_include_set() | _TRANSFORM_MODES
    excluded = torch._C._dispatch_tls_local_exclude_set() & _AUTOCAST
    return torch._C._ForceDispatchKeyGuard(included, excluded)
