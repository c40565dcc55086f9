"""Derivatives for the raw ops, in the two forms that PyTorch needs.

The formula of an op is a ``setup_context`` and a ``backward`` over registered ops. It is used twice:

- as the Autograd kernel of the raw op, so that ``torch.ops.moe_ext.*`` differentiates in eager mode, under
  ``torch.compile`` and in ``torch.export``;
- as a ``torch.autograd.Function`` with separate ``forward`` and ``setup_context``, taken while a ``torch.func``
  transform is active, because the kernels that PyTorch generates for custom ops cannot be transformed.

Forward-mode AD has no formula here. Left alone, PyTorch would return a zero tangent for a custom op without a word;
both forms raise instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad

from . import _autocast
from ._library import LIBRARY, NAMESPACE, raw

Op = Callable[..., Any]


def differentiable(
    name: str,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    autocast: Sequence[int] = (),
) -> Op:
    """Registers the derivative of ``moe_ext::<name>`` and returns the op to call from Python.

    Args:
        name: the op, without its namespace.
        setup_context: ``(ctx, inputs, output)``; keeps tensors with ``ctx.save_for_backward`` only.
        backward: ``(ctx, *grads) -> grad of every input``. An undefined gradient arrives as None.
        autocast: positions of the arguments that autocast lowers.

    Returns:
        A function with the positional arguments of the raw op.
    """
    op = raw(name)
    message = f"{NAMESPACE}::{name} has no forward-mode derivative (jvp); use reverse mode"

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Outputs that only serve backward (the kept pre-activation) would otherwise be given zeros as gradients.
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    def run_backward(ctx: Any, *grads: Tensor | None) -> Any:
        # Forward has decided the dtypes; a backward pass that runs inside an autocast region must not change them.
        with _autocast.disabled():
            return backward(ctx, *grads)

    class Formula(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return run_backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            raise NotImplementedError(message)

    generated = make_autograd_impl(op, Info(run_backward, setup))

    def autograd_kernel(keyset: Any, *args: Any) -> Any:
        if any(isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args):
            raise NotImplementedError(message)
        return generated(keyset, *args)

    LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)
    if autocast:
        _autocast.register(name, autocast)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
            # Lowered here: inside Formula the saved tensors would keep the dtype that they came with.
            return Formula.apply(*_autocast.lower(args, autocast))
        return op(*args)

    return call


def differentiable_once(name: str) -> Op:
    """Marks ``moe_ext::<name>``, itself the backward of an op, as one that cannot be differentiated again."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise NotImplementedError(f"{NAMESPACE}::{name}: double backward is not supported")

    return differentiable(name, setup_context=setup_context, backward=backward)
