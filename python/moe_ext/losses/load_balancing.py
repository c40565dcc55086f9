"""The load-balancing loss: (share of the slots an expert gets) x (mean probability it is given), summed."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_ext.losses.counts import expert_counts

Convention = Literal["share", "per_token"]
Score = Literal["softmax", "sigmoid", "sqrtsoftplus"]


def load_balancing_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    score: Score = "softmax",
    convention: Convention = "share",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
) -> Tensor:
    """Auxiliary loss that is smallest when every expert gets the same load. No coefficient is applied.

    Per sequence of S tokens, with c_e the number of slots that chose expert e and P_e the mean over tokens of the
    probability of e, `L = sum_e f_e P_e`, then the mean over sequences. The gradient flows through P only.

    * `convention="share"`: `f_e = E c_e / (K S)`, so perfect balance gives 1 for every E and K. Megatron-LM
      `switch_load_balancing_loss_func`, MegaBlocks, DeepSeekMoE (arXiv:2401.06066, eq. 12-14).
    * `convention="per_token"`: `f_e = E c_e / S`, K times larger, balance gives K. Hugging Face
      `load_balancing_loss_func` (Mixtral, Qwen2-MoE, DBRX), which also concatenates the tokens of all layers:
      concatenate logits and ids before the call to get its number.

    Other losses of the literature are calls of this function:

    * Switch Transformer (arXiv:2101.03961, eq. 4): top-1 ids. GShard as coded in DeepSpeed and fairseq: the first
      choices only, `topk_ids[:, :1]`.
    * DeepSeek-V2 `seq_aux` (arXiv:2405.04434): `num_sequences=B`.
    * DeepSeek-V3 (arXiv:2412.19437, eq. 17-20): `score="sigmoid", num_sequences=B`. Its text counts the top-K of the
      unbiased scores, not the experts used: pass those ids.

    Call it with the ids the router chose, before capacity or expert parallelism turns some into sentinels.

    Args:
        router_logits: [T, E], any float dtype. The arithmetic is float32 (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64. Sentinels (< 0 or >= E) are not counted; a token with no expert at all
            leaves S and P as well.
        score: softmax over experts, or sigmoid / sqrt(softplus) divided by their sum over experts.
        convention: how counts become f, see above.
        num_sequences: 1 looks at the whole micro-batch; B at each of B equally long sequences. Sequences without
            any counted token do not enter the mean.
        token_mask: [T] bool, False for tokens to leave out (padding).

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: unknown score or convention, or shapes that do not fit.
    """
    if convention not in ("share", "per_token"):
        raise ValueError(f"load_balancing_loss: convention must be 'share' or 'per_token', got {convention!r}")
    num_tokens, num_experts = router_logits.shape
    if topk_ids.dim() != 2 or topk_ids.shape[0] != num_tokens:
        raise ValueError(
            f"load_balancing_loss: topk_ids must be [{num_tokens}, K] like router_logits, got {tuple(topk_ids.shape)}"
        )
    in_range = (topk_ids >= 0) & (topk_ids < num_experts)
    counted = in_range.any(dim=1)
    if token_mask is not None:
        counted = counted & token_mask.reshape(num_tokens)
        topk_ids = topk_ids.masked_fill(~counted[:, None], -1)
    counts = expert_counts(topk_ids, num_experts, num_sequences)

    # Masked before the softmax: logits of a left-out token may be NaN, and 0 * NaN would reach the gradient.
    probabilities = _probabilities(router_logits.masked_fill(~counted[:, None], 0), score)
    weight = counted.to(probabilities.dtype)
    per_sequence = (num_sequences, num_tokens // num_sequences)
    num_counted = weight.reshape(per_sequence).sum(1)
    denominator = num_counted.clamp(min=1)
    mean_probability = (probabilities * weight[:, None]).reshape(*per_sequence, num_experts).sum(1)
    mean_probability = mean_probability / denominator[:, None]

    slots_per_token = topk_ids.shape[1] if convention == "share" else 1
    load = counts.to(probabilities.dtype) * num_experts / (slots_per_token * denominator[:, None])
    loss = (load * mean_probability).sum(1)
    return loss.sum() / (num_counted > 0).sum().clamp(min=1)


def _probabilities(router_logits: Tensor, score: str) -> Tensor:
    logits = router_logits if router_logits.dtype == torch.float64 else router_logits.float()
    if score == "softmax":
        return logits.softmax(dim=-1)
    if score == "sigmoid":
        scores = logits.sigmoid()
    elif score == "sqrtsoftplus":
        scores = F.softplus(logits).sqrt()
    else:
        raise ValueError(f"load_balancing_loss: score must be softmax, sigmoid or sqrtsoftplus, got {score!r}")
    # The smallest normal number only matters where every score of a token has underflowed to zero.
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
