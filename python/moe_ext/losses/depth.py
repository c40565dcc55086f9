"""Mixture-of-Depths: teach the router to predict, token by token, what the choice over a whole sequence will be."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.losses._reductions import mean_over_tokens
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


def token_selection_loss(logits: Tensor, selected: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy of `sigmoid(logits)` with whether each token was selected.

    Mixture-of-Depths, arXiv:2404.02258, section 3.5, first method: the logits are the router's own, so that
    `sigmoid > 0.5`, which looks at no later token, can take the place of the top-C of the sequence. The gradient
    `(sigmoid(r_t) - selected_t) / T` goes to the logits; the selection is a constant. Averaged over ranks with equally
    many tokens, the mean is that over all.

    Args:
        logits: r, [T] or [B, S] or any shape, any float dtype; float32 arithmetic (float64 for float64 logits).
        selected: bool of the same shape, the tokens that went through the block.
        token_mask: bool of the same shape, False for tokens to leave out (padding).

    Returns:
        Scalar; 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    return _selection_loss("losses.token_selection_loss", logits, selected, token_mask)


def depth_predictor_loss(
    predictor: Callable[[Tensor], Tensor], x: Tensor, selected: Tensor, *, token_mask: Tensor | None = None
) -> Tensor:
    """`token_selection_loss` of a predictor that has no say in training: nothing of the loss reaches x.

    Mixture-of-Depths, arXiv:2404.02258, section 3.5, second method. At inference `predictor(x) > 0` selects.

    Args:
        predictor: a small network, [..., H] -> [...] or [..., 1]. Gets the gradient.
        x: [..., H], the tokens before the block. Detached here.
        selected: [...] bool. token_mask: [...] bool, False for tokens to leave out (padding).

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.depth_predictor_loss"
    _checks.is_tensor(function, "x", x, _checks.DATA_DTYPES)
    logits = predictor(x.detach())
    _checks.is_tensor(function, "predictor(x)", logits, _checks.DATA_DTYPES)
    if logits.dim() == x.dim() and logits.shape[-1] == 1:
        logits = logits.squeeze(-1)
    return _selection_loss(function, logits, selected, token_mask)


def _selection_loss(function: str, logits: Tensor, selected: Tensor, token_mask: Tensor | None) -> Tensor:
    _checks.is_tensor(function, "logits", logits, _checks.DATA_DTYPES)
    for name, value in (("selected", selected), ("token_mask", token_mask)):
        if value is not None:
            _checks.is_tensor(function, name, value, (torch.bool,))
            if value.shape != logits.shape:
                raise ValueError(
                    f"moe_ext.{function}: {name} must be {tuple(logits.shape)} like the logits, "
                    f"got shape {tuple(value.shape)}"
                )
    logits = wide(logits)
    if token_mask is not None:
        logits = logits.masked_fill(~token_mask, 0)
    loss = F.binary_cross_entropy_with_logits(logits, selected.to(logits.dtype), reduction="none")
    return mean_over_tokens(loss, token_mask)
