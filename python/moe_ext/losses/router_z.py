"""The router z-loss: keeps the logits of the router small."""

import torch
from torch import Tensor


def router_z_loss(router_logits: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the squared log-partition: `mean_t (logsumexp_e z_te)^2`. No coefficient is applied.

    ST-MoE, arXiv:2202.08906, eq. 5 (coefficient 1e-3 there). Gradient: `2 lse_t p_te / T`.

    Args:
        router_logits: [T, E], any float dtype: the logits the routing really used. float32 arithmetic (float64 for
            float64 logits).
        token_mask: [T] bool, False for tokens to leave out (padding, or rows without finite logits).

    Returns:
        Scalar, float32 (float64 for float64 logits); 0 where no token counts.
    """
    logits = router_logits if router_logits.dtype == torch.float64 else router_logits.float()
    if token_mask is None:
        return logits.logsumexp(dim=-1).square().sum() / max(logits.shape[0], 1)
    token_mask = token_mask.reshape(logits.shape[0])
    # Masked before the logsumexp: logits of a left-out token may be NaN, and 0 * NaN would reach the gradient.
    log_partition = logits.masked_fill(~token_mask[:, None], 0).logsumexp(dim=-1)
    return (log_partition.square() * token_mask).sum() / token_mask.sum().clamp(min=1)
