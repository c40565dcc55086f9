"""LoRAMoE's constraint: experts of one type get the samples of that type, and are balanced among themselves."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import check_sequences, checked_logits, checked_mask, without
from moe_ext.losses._reductions import per_sequence, sum_over_group
from moe_ext.ops import _checks
from moe_ext.ops._precision import wide

Form = Literal["paper", "code"]


def sample_importance(router_logits: Tensor, num_sequences: int, *, token_mask: Tensor | None = None) -> Tensor:
    """`Q_be`, the sum over the tokens of sample b of the softmax weight of expert e.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits). The T tokens are B
            samples of T / B tokens, one after the other.
        num_sequences: B.
        token_mask: [T] bool, False for tokens to leave out (padding).

    Returns:
        [B, E], with the gradient of the softmax.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.sample_importance"
    logits = checked_logits(function, router_logits)
    check_sequences(function, logits.shape[0], num_sequences)
    token_mask = checked_mask(function, token_mask, logits.shape[0])
    return per_sequence(without(without(logits, token_mask).softmax(dim=-1), token_mask), num_sequences)


def localized_balance_loss(
    importance: Tensor,
    sample_types: Tensor,
    expert_types: Tensor,
    *,
    delta: float = 0.1,
    form: Form = "paper",
    group: ProcessGroup | None = None,
) -> Tensor:
    """How much `Z_be = I_be Q_be` varies, with `I = 1 + delta` where the types agree and `1 - delta` elsewhere.

    LoRAMoE, arXiv:2312.09979: with types {knowledge, task} for samples and experts, an expert is pushed
    towards the samples of its type by delta. `form="paper"` is `var(Z) / mean(Z)`, with the population variance;
    `form="code"` is what the authors' code computes, the unbiased variance over the squared mean. The gradient flows
    through the importance.

    Args:
        importance: Q [B, E], any float dtype; float32 arithmetic (float64 for float64); see `sample_importance`.
        sample_types: [B] integers. expert_types: [E] integers. Any number of types.
        delta: 0..1.
        form: see above.
        group: over the samples of all ranks of this process group. Every rank gets the global loss, and the mean over
            ranks of the gradients is its gradient.

    Returns:
        Scalar; 0 without samples.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: wrong shapes, form or delta.
    """
    function = "losses.localized_balance_loss"
    _checks.is_choice(function, "form", form, ("paper", "code"))
    _checks.is_number(function, "delta", delta, low=0.0)
    if delta > 1:
        raise ValueError(f"moe_ext.{function}: delta must be at most 1, got {delta}")
    _checks.is_tensor(function, "importance", importance, _checks.DATA_DTYPES)
    _checks.has_rank(function, "importance", importance, "num_samples, num_experts")
    num_samples, num_experts = importance.shape
    _checks.is_tensor(function, "sample_types", sample_types, _checks.ID_DTYPES)
    _checks.has_shape(function, "sample_types", sample_types, "num_samples", (num_samples,))
    _checks.is_tensor(function, "expert_types", expert_types, _checks.ID_DTYPES)
    _checks.has_shape(function, "expert_types", expert_types, "num_experts", (num_experts,))
    same_type = (sample_types[:, None] == expert_types[None, :]).to(wide(importance).dtype)
    weighted = (wide(importance) * (1 - delta + 2 * delta * same_type)).flatten()
    number = weighted.new_full((), weighted.numel())
    total, number = sum_over_group(torch.stack((weighted.sum(), number)), group).unbind()
    mean = total / number.clamp(min=1)
    # The gradient through this mean is zero, the sum of all differences from it; that of a rank's own part is not.
    squares = sum_over_group((weighted - mean.detach()).square().sum(), group)
    if form == "code":
        return squares / (number - 1).clamp(min=1) / (mean.square() + 1e-10)
    return squares / number.clamp(min=1) / (mean + 1e-10)
