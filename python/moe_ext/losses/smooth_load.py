"""A differentiable estimate of how many tokens each expert gets, for routers with noise, and the loss made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import check_sequences, checked_logits, checked_mask, without
from moe_ext.losses._reductions import per_sequence
from moe_ext.losses.coefficient_of_variation import mean_squared_variation
from moe_ext.ops import _checks, route
from moe_ext.ops._precision import wide


def selection_probability(
    clean_logits: Tensor,
    noisy_logits: Tensor,
    noise_std: Tensor | float,
    top_k: int,
    *,
    exclude_self: bool = True,
) -> Tensor:
    """The probability that an expert is chosen if its own noise is drawn again and that of all others is kept.

    `P_te = Phi((z_te - threshold_te) / std_te)`, where z are the clean logits and Phi is the normal distribution.

    * `exclude_self=True`: the threshold is the K-th largest of the noisy logits of all other experts. Shazeer et al.
      2017, arXiv:1701.06538, eq. 8-9, where `std = softplus(x W_noise)`.
    * `exclude_self=False`: it is the K-th largest of all. V-MoE, arXiv:2106.05974, appendix A, where `std = 1 / E`.

    The gradient flows through the clean logits, through the noisy logit that is the threshold, and through std. With
    K = E there is no threshold among the others: everyone is chosen, the probability is 1 and has no gradient.

    Args:
        clean_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits). -inf is an expert out of
            reach, with probability 0; where fewer than K (others) are within reach, those have 1.
        noisy_logits: [T, E], what the experts were chosen by: clean_logits + std * noise.
        noise_std: positive, [T, E] or anything that broadcasts to it, or a number.
        top_k: K.
        exclude_self: see above.

    Returns:
        [T, E].

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes or K that do not fit.
    """
    function = "losses.selection_probability"
    clean = checked_logits(function, clean_logits, "clean_logits")
    noisy = checked_logits(function, noisy_logits, "noisy_logits").to(clean.dtype)
    num_experts = clean.shape[1]
    _checks.has_shape(function, "noisy_logits", noisy, "num_tokens, num_experts", clean.shape)
    _checks.is_int(function, "top_k", top_k, low=1, high=num_experts, why=" (num_experts)")
    _checks.is_bool(function, "exclude_self", exclude_self)
    std: Tensor | float = noise_std
    if isinstance(noise_std, Tensor):
        _checks.is_tensor(function, "noise_std", noise_std, _checks.DATA_DTYPES)
        std = wide(noise_std).to(clean.dtype)
    else:
        _checks.is_number(function, "noise_std", noise_std, above=0.0)

    if exclude_self and top_k == num_experts:
        return torch.ones_like(clean)
    # The logits themselves, largest first; unlike torch.topk it says whose gradient it is when two are equal.
    largest, ids = route(noisy, top_k + 1 if exclude_self else top_k, score="none")
    threshold = largest[:, top_k - 1 : top_k]
    if exclude_self:
        chosen = torch.zeros_like(clean, dtype=torch.bool).scatter(1, ids[:, :top_k].long(), True)
        threshold = torch.where(chosen, largest[:, top_k:], threshold)
    # Neither depends on the deviation, and an infinite margin would say so with a gradient of NaN.
    out_of_reach, unopposed = clean == -math.inf, threshold == -math.inf
    margin = (clean - threshold).masked_fill(out_of_reach | unopposed, 0)
    return torch.special.ndtr(margin / std).masked_fill(unopposed, 1).masked_fill(out_of_reach, 0)


def load_loss(
    clean_logits: Tensor,
    noisy_logits: Tensor,
    noise_std: Tensor | float,
    top_k: int,
    *,
    exclude_self: bool = True,
    correction: int = 0,
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """CV^2 of the smooth load, `load_e = sum_t P_te`, with P of `selection_probability`.

    Shazeer et al. 2017, arXiv:1701.06538, eq. 10-11 (coefficient 0.1 there); V-MoE with `exclude_self=False` and
    `noise_std=1/E`. Gradients as said there; none for K = E, where the load is the number of tokens.

    Args:
        clean_logits, noisy_logits, noise_std, top_k, exclude_self: as in `selection_probability`.
        correction, num_sequences, token_mask, group: as in `importance_loss`.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes or K that do not fit.
    """
    function = "losses.load_loss"
    clean = checked_logits(function, clean_logits, "clean_logits")
    noisy = checked_logits(function, noisy_logits, "noisy_logits")
    check_sequences(function, clean.shape[0], num_sequences)
    token_mask = checked_mask(function, token_mask, clean.shape[0])
    if token_mask is not None:
        clean, noisy = without(clean, token_mask), without(noisy, token_mask)
        if isinstance(noise_std, Tensor) and noise_std.dim() == 2 and noise_std.shape[0] == clean.shape[0]:
            noise_std = noise_std.masked_fill(~token_mask[:, None], 1)
    probability = selection_probability(clean, noisy, noise_std, top_k, exclude_self=exclude_self)
    load = per_sequence(without(probability, token_mask), num_sequences)
    counted = clean.new_ones(clean.shape[0], dtype=torch.bool) if token_mask is None else token_mask
    return mean_squared_variation(load, counted, correction, group)
