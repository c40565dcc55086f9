"""The router z-loss: keeps the logits of the router small."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import checked_logits, checked_mask, without
from moe_ext.losses._reductions import mean_over_tokens


def router_z_loss(
    router_logits: Tensor, *, token_mask: Tensor | None = None, group: ProcessGroup | None = None
) -> Tensor:
    """Mean over tokens of the squared log-partition: `mean_t (logsumexp_e z_te)^2`. No coefficient is applied.

    ST-MoE, arXiv:2202.08906, eq. 5 (coefficient 1e-3 there). Gradient: `2 lse_t p_te / T`. A mean over tokens is the
    same for every way to cut them into sequences of equal length.

    Args:
        router_logits: [T, E], any float dtype: the logits the routing really used. float32 arithmetic (float64 for
            float64 logits).
        token_mask: [T] bool, False for tokens to leave out (padding, or rows without finite logits).
        group: divide by the mean number of tokens of the ranks of this process group instead of the rank's own: the
            mean over ranks is then that over all tokens, however many of them each rank has.

    Returns:
        Scalar, float32 (float64 for float64 logits); 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit.
    """
    function = "losses.router_z_loss"
    logits = checked_logits(function, router_logits)
    token_mask = checked_mask(function, token_mask, logits.shape[0])
    return mean_over_tokens(without(logits, token_mask).logsumexp(dim=-1).square(), token_mask, group)
