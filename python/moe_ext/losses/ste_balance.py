"""Balance losses that are functions of the load itself, differentiated straight through to the probabilities.

The load F, the share of the slots that each expert got, is a count and has no gradient. `P + (F - P).detach()` has the
value of F and the gradient of the mean probabilities P, so that any function of a load becomes a loss.
Su Jianlin, "MoE tour 2: not the scarcity but the inequality of tokens" (kexue.fm/archives/10735).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._balance import Balance, Count, Score, measure
from moe_ext.losses._reductions import mean_over_sequences
from moe_ext.ops import _checks

Form = Literal["squared", "entropy", "kl"]
FORMS = ("squared", "entropy", "kl")


def straight_through_load(
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    score: Score = "softmax",
    normalize: bool = True,
    count: Count = "slots",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The load of each expert, with the gradient of its mean probability: `F + P - sg[P]`.

    `F_e = c_e / sum_i c_i` and `P_e = mean_t p_te`, per sequence.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64, sentinels allowed.
        score: softmax, sigmoid or sqrtsoftplus.
        normalize: False takes the gradient of the scores as they are, not divided by their sum over the experts.
        count, num_sequences, token_mask, group: as in `load_balancing_loss`.

    Returns:
        [B, E], each row with the sum 1 (0 where a sequence has no counted token).

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: unknown options or shapes that do not fit.
    """
    _checks.is_bool("losses.straight_through_load", "normalize", normalize)
    return _load(
        measure(
            "losses.straight_through_load",
            router_logits,
            topk_ids,
            score=score,
            normalize=normalize,
            count=count,
            num_sequences=num_sequences,
            token_mask=token_mask,
            group=group,
        )
    )


def straight_through_balance_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    form: Form = "squared",
    target: Tensor | None = None,
    score: Score = "softmax",
    normalize: bool = True,
    count: Count = "slots",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The distance of the load F from a target Q, differentiated as `straight_through_load` says.

    * `form="squared"`: `1/2 sum_e (F_e - Q_e)^2`. Gradient `sum_e (F_e - Q_e) grad P_e`, which for uniform Q and
      normalised scores is that of `sum_e F_e P_e`, `load_balancing_loss` divided by E. That sum is no loss value,
      though: it can fall below its value at balance. This one is 0 there and nowhere else.
    * `form="entropy"`: `sum_e F_e log F_e`, at least -log E. Gradient `sum_e log F_e grad P_e`.
    * `form="kl"`: `sum_e F_e log(F_e / Q_e)`, 0 if and only if F = Q.

    Logarithms are taken of `F_e + 1e-9`.

    Args:
        router_logits: [T, E], any float dtype; float32 arithmetic (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64, sentinels allowed.
        form: see above.
        target: Q [E], positive and with the sum 1; no gradient. None for 1/E each. Not for "entropy".
        score, normalize: as in `straight_through_load`.
        count, num_sequences, token_mask, group: as in `load_balancing_loss`. The mean over sequences.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: unknown options or shapes that do not fit.
    """
    function = "losses.straight_through_balance_loss"
    _checks.is_choice(function, "form", form, FORMS)
    _checks.is_bool(function, "normalize", normalize)
    balance = measure(
        function,
        router_logits,
        topk_ids,
        score=score,
        normalize=normalize,
        count=count,
        num_sequences=num_sequences,
        token_mask=token_mask,
        group=group,
    )
    load = _load(balance)
    num_experts = load.shape[1]
    if target is None:
        target = load.new_full((num_experts,), 1 / num_experts)
    else:
        if form == "entropy":
            raise ValueError(f'moe_ext.{function}: target must be None with form="entropy"; form="kl" takes one')
        _checks.is_tensor(function, "target", target, _checks.DATA_DTYPES)
        _checks.has_shape(function, "target", target, "num_experts", (num_experts,))
        target = target.detach().to(load.dtype)

    if form == "squared":
        loss = 0.5 * (load - target).square().sum(1)
    else:
        information = (load + 1e-9).log()
        if form == "kl":
            information = information - target.log()
        loss = (load * information).sum(1)
    # A sequence without tokens has no load, and no distance from any.
    loss = loss.where(balance.num_tokens > 0, torch.zeros_like(loss))
    return mean_over_sequences(loss, balance.num_tokens)


def _load(balance: Balance) -> Tensor:
    share = balance.counts / balance.counts.sum(1, keepdim=True).clamp(min=1)
    return share + (balance.probability - balance.probability.detach())
