"""The losses of StableMoE's two stages: learn a balanced routing, then distil it into a small router."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._inputs import check_sequences, checked_ids, checked_logits, checked_mask, is_counted, without
from moe_ext.losses._reductions import mean_over_tokens
from moe_ext.losses.counts import expert_counts
from moe_ext.ops import _checks

Reduction = Literal["sum", "mean"]


def overload_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """`sum_e (c_e - n) / n * sum_{t chose e} sigmoid(z_te)`, n the mean of the counts c. No coefficient is applied.

    Overloaded experts push the scores of their tokens down, the others pull theirs up. The balance loss of StableMoE,
    arXiv:2204.08396, section 3 (coefficient 0.3 there), with one expert per token. A sum, not a mean: it grows with
    the number of tokens. 0 at balance. Gradient: `(c_e - n) / n * s (1 - s)` for each chosen z_te, with s its sigmoid.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64; sentinels (< 0 or >= E) add nothing. [:, :1] for first choices only.
        num_sequences: counts of each of B equally long sequences (or groups) by themselves.
        token_mask: [T] bool, False for tokens to leave out (padding).
        group: counts over the ranks of this process group. The loss remains the sum over the tokens of the
            rank: averaged over R ranks, it is 1 / R of that over all tokens.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: shapes that do not fit.
    """
    function = "losses.overload_loss"
    logits = checked_logits(function, router_logits)
    num_tokens, num_experts = logits.shape
    topk_ids = checked_ids(function, topk_ids, num_tokens)
    check_sequences(function, num_tokens, num_sequences)
    token_mask = checked_mask(function, token_mask, num_tokens)
    is_expert = is_counted(topk_ids, num_experts, token_mask)
    counted = is_expert.any(dim=1)

    counts = expert_counts(topk_ids, num_experts, num_sequences, token_mask=token_mask, group=group).to(logits.dtype)
    mean = counts.mean(dim=1, keepdim=True)
    excess = (counts - mean) / mean.where(mean > 0, 1)
    per_token = (num_sequences, num_tokens // num_sequences, num_experts)
    ids = topk_ids.long().masked_fill(~is_expert, 0)
    excess = excess[:, None, :].expand(per_token).reshape(num_tokens, num_experts).gather(1, ids)
    scores = without(logits, counted).gather(1, ids).sigmoid()
    return (excess * scores * is_expert).sum()


def routing_distillation_loss(
    router_logits: Tensor,
    assignments: Tensor,
    *,
    reduction: Reduction = "sum",
    token_mask: Tensor | None = None,
) -> Tensor:
    """`-sum_t log softmax(z_t)[a_t]`: a router learns the assignment a of another one.

    StableMoE, arXiv:2204.08396, section 3, a sum there. Gradient: `p_te - 1{e = a_t}` for each z_te.

    Args:
        router_logits: [T, E] of the router that learns, any float dtype; float32 arithmetic (float64 for float64).
        assignments: [T] or [T, 1] int32 or int64; tokens whose id is no expert (< 0 or >= E) are left out.
        reduction: "sum" over tokens, or their "mean". Averaged over R ranks, the first is 1 / R of the sum over all
            tokens, the second the mean over all if the ranks have equally many.
        token_mask: [T] bool, False for tokens to leave out (padding).

    Returns:
        Scalar; 0 where no token counts.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: unknown reduction or shapes that do not fit.
    """
    function = "losses.routing_distillation_loss"
    _checks.is_choice(function, "reduction", reduction, ("sum", "mean"))
    logits = checked_logits(function, router_logits)
    num_tokens, num_experts = logits.shape
    _checks.is_tensor(function, "assignments", assignments, _checks.ID_DTYPES)
    if assignments.shape not in ((num_tokens,), (num_tokens, 1)):
        raise ValueError(
            f"moe_ext.{function}: assignments must be [{num_tokens}] or [{num_tokens}, 1], "
            f"got shape {tuple(assignments.shape)}"
        )
    token_mask = checked_mask(function, token_mask, num_tokens)
    ids = assignments.reshape(num_tokens, 1).long()
    counted = is_counted(ids, num_experts, token_mask)[:, 0]
    log_p = without(logits, counted).log_softmax(dim=-1).gather(1, ids.clamp(0, num_experts - 1))[:, 0]
    return mean_over_tokens(-log_p, counted) if reduction == "mean" else -(log_p * counted).sum()
