"""Entropy losses: each token should be certain of its expert, and together they should use many experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import checked_logits, checked_mask, is_counted, without
from moe_ext.losses._reductions import count_over_group, mean_over_tokens, per_label, sum_over_group
from moe_ext.ops import _checks


def local_entropy_loss(
    router_logits: Tensor, *, token_mask: Tensor | None = None, group: ProcessGroup | None = None
) -> Tensor:
    """Mean over tokens of the entropy of the probabilities, `-mean_t sum_e p_te log p_te`, in nats.

    The local loss of LIMoE (arXiv:2206.02770, section 2), there per modality: mask all others. Also the dynamic loss
    of top-p routing (Huang et al. 2024, arXiv:2403.07652; coefficient 1e-4), which keeps it from choosing everyone.
    Between 0, every token certain, and log E. Gradient: `-p_te (log p_te + H_t) / T`.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits). -inf is probability 0.
        token_mask: [T] bool, False for tokens to leave out.
        group: the mean over the ranks of this process group, see `router_z_loss`.

    Returns:
        Scalar; 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.local_entropy_loss"
    logits = checked_logits(function, router_logits)
    token_mask = checked_mask(function, token_mask, logits.shape[0])
    log_p = without(logits, token_mask).log_softmax(dim=-1)
    # 0 log 0 = 0, and so is its gradient.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0)).sum(-1)
    return mean_over_tokens(entropy, token_mask, group)


def global_entropy_loss(
    router_logits: Tensor,
    *,
    min_experts: float | Sequence[float] | None = None,
    modality_ids: Tensor | None = None,
    num_modalities: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Minus the entropy of the mean probabilities, or how far that is below the entropy of so many equal experts.

    `-H(mean_t p_t)`; with `min_experts` S, `max(0, log S - H(mean_t p_t))`, which is 0 as soon as about S experts are
    in use. The sum over modalities of that of each. LIMoE, arXiv:2206.02770, section 2.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits). -inf is probability 0.
        min_experts: S, at least 1, for all modalities or one for each. None for no threshold.
        modality_ids: [T] int32 or int64, 0..num_modalities-1, which modality (or sequence, or task) a token belongs
            to; others count nowhere. None if there is just one.
        num_modalities: M.
        token_mask: [T] bool, False for tokens to leave out.
        group: the mean probabilities of all tokens of this process group. Every rank gets the global loss, and the
            mean over ranks of the gradients is its gradient.

    Returns:
        Scalar; a modality without tokens adds nothing.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, or `min_experts` below 1.
    """
    function = "losses.global_entropy_loss"
    logits = checked_logits(function, router_logits)
    num_tokens = logits.shape[0]
    token_mask = checked_mask(function, token_mask, num_tokens)
    _checks.is_int(function, "num_modalities", num_modalities, low=1)
    if modality_ids is None:
        if num_modalities != 1:
            raise ValueError(f"moe_ext.{function}: modality_ids must be given with num_modalities = {num_modalities}")
        modality_ids = torch.zeros(num_tokens, dtype=torch.int64, device=logits.device)
    else:
        _checks.is_tensor(function, "modality_ids", modality_ids, _checks.ID_DTYPES)
        _checks.has_shape(function, "modality_ids", modality_ids, "num_tokens", (num_tokens,))

    counted = is_counted(modality_ids, num_modalities, token_mask)
    p = without(logits, counted).softmax(dim=-1)
    sums = sum_over_group(per_label(p, modality_ids, num_modalities, counted), group)
    tokens = per_label(p.new_ones(num_tokens, 1), modality_ids, num_modalities, counted)
    tokens = count_over_group(tokens, group)
    mean = sums / tokens.clamp(min=1)
    # The logarithm of an expert that nobody can reach has no gradient, and must not have an infinite one.
    loss = (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum(1)
    if min_experts is not None:
        loss = (loss + _thresholds(function, min_experts, num_modalities, loss)).clamp(min=0)
    return (loss * (tokens[:, 0] > 0)).sum()


def _thresholds(function: str, min_experts: float | Sequence[float], num_modalities: int, like: Tensor) -> Tensor:
    numbers = list(min_experts) if isinstance(min_experts, Sequence) else [min_experts] * num_modalities
    if len(numbers) != num_modalities:
        raise ValueError(
            f"moe_ext.{function}: min_experts must be one number or num_modalities = {num_modalities}, "
            f"got {len(numbers)}"
        )
    for number in numbers:
        _checks.is_number(function, "min_experts", number, low=1)
    # Filled, not copied: a copy from the host would wait for the device.
    return torch.stack([like.new_full((), math.log(number)) for number in numbers])
