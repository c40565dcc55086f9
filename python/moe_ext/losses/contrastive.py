"""Contrastive losses: outputs of the same expert, or of the same task, should be alike and others should not.

They compare what they are given. Their mean over ranks is therefore not the loss of the global batch, which has more
pairs; to compare across ranks, gather the outputs first, differentiably.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.losses._inputs import checked_mask, softplus
from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide

Form = Literal["infonce", "ratio"]


def expert_contrastive_loss(
    outputs: Tensor,
    topk_ids: Tensor,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    token_mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE over the outputs of the activated experts: each expert should have something of its own to say.

    For an output q, another token's output k of the same expert and all outputs n of other experts,
    `-log(exp(q k / tau) / (exp(q k / tau) + sum_n exp(q n / tau)))`; the mean over the k of each q, then over all q
    that have a k. MoELoRA, arXiv:2402.12851, section 3. Gradients flow to the outputs of both sides. Never negative.

    The cost is (T K)^2: pass a sample of the tokens where that is too much.

    Args:
        outputs: [T, K, H], what each chosen expert made of the token, without its weight. Any float dtype; float32
            arithmetic (float64 for float64 outputs).
        topk_ids: [T, K] int32 or int64; slots with an id below 0 take no part.
        temperature: tau, positive.
        normalize: divide every output by its length first.
        token_mask: [T] bool, False for tokens to leave out (padding).

    Returns:
        Scalar; 0 if no output has another one of its expert.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: wrong shapes or temperature.
    """
    function = "losses.expert_contrastive_loss"
    _checks.is_tensor(function, "outputs", outputs, _checks.DATA_DTYPES)
    _checks.has_rank(function, "outputs", outputs, "num_tokens, top_k, hidden_size")
    num_tokens, top_k, hidden_size = outputs.shape
    _checks.is_tensor(function, "topk_ids", topk_ids, _checks.ID_DTYPES)
    _checks.has_shape(function, "topk_ids", topk_ids, "num_tokens, top_k", (num_tokens, top_k))
    token_mask = checked_mask(function, token_mask, num_tokens)
    is_slot = topk_ids >= 0
    if token_mask is not None:
        is_slot = is_slot & token_mask[:, None]
    is_slot, expert = is_slot.flatten(), topk_ids.flatten()
    token = torch.arange(num_tokens, device=outputs.device).repeat_interleave(top_k)
    pair = is_slot[:, None] & is_slot[None, :]
    same = expert[:, None] == expert[None, :]
    positive = pair & same & (token[:, None] != token[None, :])
    similarity = _similarity(function, outputs.reshape(-1, hidden_size), is_slot, temperature, normalize)

    negatives = _logsumexp(similarity, pair & ~same)[:, None]
    # softplus(n - s) = -log(exp(s) / (exp(s) + exp(n))); 0 where there is no negative at all.
    loss = softplus((negatives - similarity).masked_fill(~positive, 0)).masked_fill(~positive, 0)
    num_positive = positive.sum(1)
    return (loss.sum(1) / num_positive.clamp(min=1)).sum() / (num_positive > 0).sum().clamp(min=1)


def task_contrastive_loss(
    features: Tensor,
    task_ids: Tensor,
    *,
    form: Form = "infonce",
    temperature: float = 0.1,
    normalize: bool = True,
    token_mask: Tensor | None = None,
) -> Tensor:
    """Features of the same task should be alike, those of different tasks should not.

    For each sample i with positives P (same task) and negatives N (another), s the similarities over the temperature:

    * `form="infonce"`: `-log(sum_P exp(s) / (sum_P exp(s) + sum_N exp(s)))`, never negative (supervised contrastive
      learning, arXiv:2004.11362, with the sum inside the logarithm).
    * `form="ratio"`: `-log(sum_P exp(s) / sum_N exp(s))`, which has no lower bound.

    The mean over the samples that have both; those without either are left out, so that a batch of a single task
    gives 0. Gradients flow to both sides.

    Args:
        features: [N, D], any float dtype; float32 arithmetic (float64 for float64 features). The cost is N^2.
        task_ids: [N] integers.
        form: see above.
        temperature: positive.
        normalize: divide every feature by its length first.
        token_mask: [N] bool, False for samples to leave out.

    Returns:
        Scalar.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: wrong shapes, form or temperature.
    """
    function = "losses.task_contrastive_loss"
    _checks.is_choice(function, "form", form, ("infonce", "ratio"))
    _checks.is_tensor(function, "features", features, _checks.DATA_DTYPES)
    _checks.has_rank(function, "features", features, "num_samples, num_features")
    num_samples = features.shape[0]
    _checks.is_tensor(function, "task_ids", task_ids, _checks.ID_DTYPES)
    _checks.has_shape(function, "task_ids", task_ids, "num_samples", (num_samples,))
    token_mask = checked_mask(function, token_mask, num_samples)
    counted = torch.ones_like(task_ids, dtype=torch.bool) if token_mask is None else token_mask
    similarity = _similarity(function, features, counted, temperature, normalize)

    sample = torch.arange(num_samples, device=features.device)
    pair = counted[:, None] & counted[None, :] & (sample[:, None] != sample[None, :])
    same = task_ids[:, None] == task_ids[None, :]
    positive, negative = pair & same, pair & ~same
    anchor = positive.any(dim=1) & negative.any(dim=1)
    gap = (_logsumexp(similarity, negative) - _logsumexp(similarity, positive)).masked_fill(~anchor, 0)
    loss = (gap if form == "ratio" else softplus(gap)).masked_fill(~anchor, 0)
    return loss.sum() / anchor.sum().clamp(min=1)


def _similarity(function: str, x: Tensor, counted: Tensor, temperature: float, normalize: bool) -> Tensor:
    """[N, D] -> [N, N]; rows that do not count are zeros, whatever they hold."""
    _checks.is_number(function, "temperature", temperature, above=0.0)
    _checks.is_bool(function, "normalize", normalize)
    x = wide(x).masked_fill(~counted[:, None], 0)
    if normalize:
        x = F.normalize(x, dim=-1)
    with no_autocast(x.device.type):
        return x @ x.T / temperature


def _logsumexp(x: Tensor, mask: Tensor) -> Tensor:
    """Over the masked entries of each row. A row without any gives a very negative number instead of -inf, whose
    gradient would be NaN."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0])
    return x.masked_fill(~mask, torch.finfo(x.dtype).min / 4).logsumexp(dim=-1)
