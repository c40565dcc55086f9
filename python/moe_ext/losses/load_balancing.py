"""The load-balancing loss: (share of the slots an expert gets) x (mean probability it is given), summed."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from moe_ext.losses._balance import CONVENTIONS, Convention, Count, Score, measure
from moe_ext.losses._reductions import mean_over_sequences
from moe_ext.ops import _checks


def load_balancing_loss(
    router_logits: Tensor,
    topk_ids: Tensor,
    *,
    score: Score = "softmax",
    convention: Convention = "share",
    count: Count = "slots",
    num_sequences: int = 1,
    token_mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Auxiliary loss that is smallest when every expert gets the same load. No coefficient is applied.

    Per sequence of S tokens, with c_e the number of slots that chose expert e and P_e the mean over tokens of the
    probability of e, `L = sum_e f_e P_e`, then the mean over sequences. The gradient flows through P only:
    `dL/dz_te = p_te (f_e - sum_i f_i p_ti) / S` for the softmax.

    * `convention="share"`: `f_e = E c_e / (K S)`, so perfect balance gives 1 for every E and K. Megatron-LM
      `switch_load_balancing_loss_func`, MegaBlocks (which also divides by the number of layers), DeepSeekMoE
      (arXiv:2401.06066, eq. 12-14).
    * `convention="per_token"`: `f_e = E c_e / S`, K times larger, balance gives K. Hugging Face
      `load_balancing_loss_func` (Mixtral, Qwen2-MoE, DBRX), which also concatenates the tokens of all layers:
      concatenate logits and ids before the call to get its number.
    * `convention="load"`: `f_e = E c_e / sum_i c_i`, balance gives 1 also where the number of experts differs from
      token to token.
    * `convention="gshard"`: `f_e = c_e / (E S)`, the scale of the GShard paper; balance gives K / E^2.

    Other losses of the literature are calls of this function:

    * Switch Transformer (arXiv:2101.03961, eq. 4): top-1 ids. As coded in Hugging Face's Switch Transformers:
      `convention="per_token", count="tokens", num_sequences=B`, without its counting of dropped tokens as expert 0.
    * GShard (arXiv:2006.16668, algorithm 1): `convention="gshard", count="first"`, with `num_sequences` local groups.
      As coded in lingvo, DeepSpeed and fairseq, E^2 times larger: `count="first"`.
    * DeepSeek-V2 `seq_aux` (arXiv:2405.04434): `num_sequences=B`.
    * DeepSeek-V3 (arXiv:2412.19437, eq. 17-20): `score="sigmoid", num_sequences=B, count="unbiased"`: its text counts
      the top-K of the scores without bias and groups, not the experts used.

    Call it with the ids the router chose, before capacity or expert parallelism turns some into sentinels.

    Args:
        router_logits: [T, E], any float dtype. The arithmetic is float32 (float64 for float64 logits).
        topk_ids: [T, K] int32 or int64. Sentinels (< 0 or >= E) are not counted; a token with no expert at all
            leaves S and P as well.
        score: softmax over experts, or sigmoid / sqrt(softplus) divided by their sum over experts.
        convention: how counts become f, see above.
        count: what c counts. "slots": all of `topk_ids`; "first": the first choices (K is 1 then); "tokens": a token
            once per expert, however often it chose it; "unbiased": the K largest logits, whatever `topk_ids` holds.
        num_sequences: 1 looks at the whole micro-batch; B at each of B equally long sequences, or groups of tokens.
            Sequences without any counted token do not enter the mean.
        token_mask: [T] bool, False for tokens to leave out (padding).
        group: count over the ranks of this process group; `torch.distributed.group.WORLD` for all of them. The
            probabilities stay those of the rank (Megatron-LM's global balance), and the mean over ranks of value and
            gradient is that of the global batch, also with unequal numbers of tokens. With `num_sequences`, sequence
            b of every rank is a part of the same sequence (context parallelism).

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: unknown score, convention or count, or shapes that do not fit.
    """
    function = "losses.load_balancing_loss"
    _checks.is_choice(function, "convention", convention, CONVENTIONS)
    balance = measure(
        function,
        router_logits,
        topk_ids,
        score=score,
        count=count,
        num_sequences=num_sequences,
        token_mask=token_mask,
        group=group,
    )
    return mean_over_sequences((balance.load(convention) * balance.probability).sum(1), balance.num_tokens)
