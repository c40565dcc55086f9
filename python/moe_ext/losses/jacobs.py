"""The losses of the first mixture of experts: regression where all experts see every case.

Jacobs, Jordan, Nowlan and Hinton 1991, "Adaptive mixtures of local experts", Neural Computation 3:79. With d the
target, o_i the output of expert i, and p = softmax(z) the gate. Each is a mean over the cases: averaged over ranks with
equally many, that is the mean over all.
"""

from __future__ import annotations

from torch import Tensor

from moe_ext.losses._inputs import checked_logits, checked_mask
from moe_ext.losses._reductions import mean_over_tokens
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide


def cooperative_loss(
    outputs: Tensor, router_logits: Tensor, targets: Tensor, *, token_mask: Tensor | None = None
) -> Tensor:
    """`|| d - sum_i p_i o_i ||^2`: all experts together make up for the error (Jacobs et al. 1991, eq. 1.1).

    Gradient of a case: `-2 p_i (d - sum_j p_j o_j)` for o_i, so that one expert's error moves all others.

    Args:
        outputs: [T, E, H], of every expert. router_logits: [T, E]. targets: [T, H]. Any float dtypes; float32
            arithmetic (float64 for float64 outputs).
        token_mask: [T] bool, False for cases to leave out.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    outputs, logits, targets, mask = _checked("losses.cooperative_loss", outputs, router_logits, targets, token_mask)
    mixture = (logits.softmax(dim=-1)[:, :, None] * outputs).sum(1)
    return mean_over_tokens((targets - mixture).square().sum(-1), mask)


def competitive_loss(
    outputs: Tensor, router_logits: Tensor, targets: Tensor, *, token_mask: Tensor | None = None
) -> Tensor:
    """`sum_i p_i || d - o_i ||^2`: each expert has to be right by itself (Jacobs et al. 1991, eq. 1.2).

    Gradient of a case: `-2 p_i (d - o_i)` for o_i, and `p_i (|| d - o_i ||^2 - loss)` for z_i: an error below the
    average raises the gate.

    Args, Returns, Raises: as `cooperative_loss`.
    """
    outputs, logits, targets, mask = _checked("losses.competitive_loss", outputs, router_logits, targets, token_mask)
    errors = (targets[:, None] - outputs).square().sum(-1)
    return mean_over_tokens((logits.softmax(dim=-1) * errors).sum(-1), mask)


def mixture_likelihood_loss(
    outputs: Tensor, router_logits: Tensor, targets: Tensor, *, token_mask: Tensor | None = None
) -> Tensor:
    """`-log sum_i p_i exp(-|| d - o_i ||^2 / 2)`: the target under a mixture of Gaussians.

    Jacobs et al. 1991, eq. 1.3, up to the constant of the normal distribution. Gradient of a case: `-h_i (d - o_i)`
    for o_i and `p_i - h_i` for z_i, where h is the posterior probability of the experts: the best one learns fastest.

    Args, Returns, Raises: as `cooperative_loss`.
    """
    function = "losses.mixture_likelihood_loss"
    outputs, logits, targets, mask = _checked(function, outputs, router_logits, targets, token_mask)
    errors = (targets[:, None] - outputs).square().sum(-1)
    return mean_over_tokens(-(logits.log_softmax(dim=-1) - errors / 2).logsumexp(dim=-1), mask)


def _checked(
    function: str, outputs: Tensor, router_logits: Tensor, targets: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    _checks.is_tensor(function, "outputs", outputs, _checks.DATA_DTYPES)
    _checks.has_rank(function, "outputs", outputs, "num_tokens, num_experts, hidden_size")
    num_tokens, num_experts, hidden_size = outputs.shape
    logits = checked_logits(function, router_logits)
    _checks.has_shape(function, "router_logits", logits, "num_tokens, num_experts", (num_tokens, num_experts))
    _checks.is_tensor(function, "targets", targets, _checks.DATA_DTYPES)
    _checks.has_shape(function, "targets", targets, "num_tokens, hidden_size", (num_tokens, hidden_size))
    mask = checked_mask(function, token_mask, num_tokens)
    outputs = wide(outputs)
    logits, targets = logits.to(outputs.dtype), targets.to(outputs.dtype)
    if mask is not None:
        out = ~mask[:, None]
        logits, targets = logits.masked_fill(out, 0), targets.masked_fill(out, 0)
        outputs = outputs.masked_fill(out[:, :, None], 0)
    return outputs, logits, targets, mask
