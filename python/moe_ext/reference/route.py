"""route: router logits in, the K experts of every token and their weights out.

Sources of the score and selection rules: softmax then top-k, Shazeer et al. 2017 (arXiv:1701.06538) and Switch
(arXiv:2101.03961); softmax over the selected logits, Mixtral (arXiv:2401.04088); keeping the best groups by their
maximum, DeepSeek-V2 (arXiv:2405.04434); sigmoid scores, selection bias and groups ranked by the sum of their best two,
DeepSeek-V3 (arXiv:2412.19437).
"""

from typing import Any

import torch
from torch import Tensor

from moe_ext.reference.precision import compute_dtype

SCORES = ("softmax", "sigmoid", "sqrtsoftplus", "none")
GROUP_FILLS = {"-inf": float("-inf"), "0": 0.0}
NONFINITE_POLICIES = ("propagate", "sanitize", "error")


def route(
    router_logits: Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    softmax_after: bool = False,
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_top: int = 1,
    group_fill: str = "-inf",
    renormalize: bool = False,
    eps: float = 1e-20,
    scale: float = 1.0,
    nonfinite: str = "propagate",
) -> tuple[Tensor, Tensor]:
    """Choose ``top_k`` experts for every token and weigh them.

    Experts are ordered by ``score + bias``, higher first, equal ones by the lower index, NaN above everything. Weights
    are the scores of the chosen experts (without the bias), divided by their sum plus ``eps`` if ``renormalize``, then
    multiplied by ``scale``. The choice is never differentiated and ``bias`` gets no gradient.

    Args:
        router_logits: ``[T, E]``, any floating dtype.
        top_k: K, from 1 to E.
        score: ``softmax`` | ``sigmoid`` | ``sqrtsoftplus`` (the root of softplus) | ``none`` (the logits themselves).
        softmax_after: order by ``logits + bias`` and take the softmax over the K chosen logits instead. Only with
            ``score="softmax"``.
        bias: ``[E]``, added for the choice only.
        num_groups: the experts form this many equal, contiguous groups.
        topk_groups: only experts of the best ``topk_groups`` groups can be chosen.
        group_top: the score of a group is the sum of its best ``group_top`` values (1: its maximum).
        group_fill: what the values of the other groups become, ``-inf`` or ``0``. With ``0`` they can still win
            against negative values.
        nonfinite: ``propagate`` lets NaN, +inf and rows of only -inf act as they do in ``torch.softmax``;
            ``sanitize`` turns NaN into -inf and +inf into the largest float32, without gradient, and gives rows of
            only -inf ids of -1 and weights of 0; ``error`` raises.

    Returns:
        ``topk_weights [T, K]`` float32 (float64 for float64 logits) and ``topk_ids [T, K]`` int32, best first.

    Raises:
        ValueError: arguments that do not fit together, or non-finite logits under ``nonfinite="error"``.
    """
    _check(router_logits, top_k, score, softmax_after, bias, num_groups, topk_groups, group_top, group_fill, nonfinite)
    logits = router_logits.to(compute_dtype(router_logits.dtype))
    dead = torch.zeros(logits.shape[0], 1, dtype=torch.bool, device=logits.device)
    if nonfinite == "error":
        _raise_on_nonfinite(logits)
    elif nonfinite == "sanitize":
        logits, dead = _sanitize(logits)

    scores = logits if softmax_after else _score(logits, score)
    values = scores.detach()
    if bias is not None:
        values = values + bias.detach().to(values.dtype)
    if num_groups > 1:
        values = _keep_best_groups(values, num_groups, topk_groups, group_top, GROUP_FILLS[group_fill])
    # A stable sort keeps the lower index first among equals, which torch.topk does not promise.
    ids = values.argsort(dim=-1, descending=True, stable=True)[:, :top_k]

    weights = scores.gather(1, ids)
    if softmax_after:
        weights = weights.softmax(dim=-1)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + eps)
    weights = weights * scale
    return torch.where(dead, 0.0, weights), torch.where(dead, -1, ids).to(torch.int32)


def route_with_statistics(
    router_logits: Tensor, top_k: int, *, score: str = "softmax", nonfinite: str = "propagate", **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``route``, and sums over the tokens for auxiliary losses.

    A token that chose nobody (``sanitize``) counts in none of them. In the gradient of sums ids are constants.

    Args:
        router_logits, top_k, score, nonfinite, options: see ``route``; ``score`` may not be ``none``.

    Returns:
        ``topk_weights``, ``topk_ids``; ``score_sums [E]``, the scores of every token divided by their sum over all
        experts; ``expert_counts [E]`` int32; ``z_sum [1]``, the squares of ``logsumexp(router_logits)``.

    Raises:
        ValueError: ``score="none"``, whose logits sum to nothing in particular; and what ``route`` raises.
    """
    if score == "none":
        raise ValueError("score: expected one that sums to something, got 'none'")
    weights, ids = route(router_logits, top_k, score=score, nonfinite=nonfinite, **options)
    num_experts = router_logits.shape[1]
    logits = router_logits.to(compute_dtype(router_logits.dtype))
    logits = (_sanitize(logits)[0] if nonfinite == "sanitize" else logits)[ids[:, 0] >= 0]
    scores = _score(logits, score)
    counts = torch.bincount(ids[ids >= 0].long(), minlength=num_experts).to(torch.int32)
    z_sum = logits.logsumexp(dim=1).square().sum().reshape(1)
    return weights, ids, (scores / scores.sum(dim=1, keepdim=True)).sum(dim=0), counts, z_sum


def _score(logits: Tensor, score: str) -> Tensor:
    if score == "softmax":
        return logits.softmax(dim=-1)
    if score == "sigmoid":
        return logits.sigmoid()
    if score == "sqrtsoftplus":
        # Not F.softplus: from 20 on it returns its input, which costs float64 half its digits.
        softplus = torch.logaddexp(logits, torch.zeros_like(logits))
        # The root has an infinite slope at 0, where softplus underflows to; the slope of the whole tends to 0 there.
        vanished = softplus == 0
        return torch.where(vanished, 0.0, torch.where(vanished, 1.0, softplus).sqrt())
    return logits


def _keep_best_groups(values: Tensor, num_groups: int, topk_groups: int, group_top: int, fill: float) -> Tensor:
    num_tokens, num_experts = values.shape
    grouped = values.reshape(num_tokens, num_groups, num_experts // num_groups)
    best = grouped.sort(dim=-1, descending=True).values[..., :group_top]
    order = best.sum(dim=-1).argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros(num_tokens, num_groups, dtype=torch.bool, device=values.device)
    kept.scatter_(1, order[:, :topk_groups], True)
    return torch.where(kept.unsqueeze(-1), grouped, fill).flatten(1)


def _sanitize(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits without NaN and +inf, and ``[T, 1]``: which rows have nothing to choose from."""
    logits = torch.where(logits.isnan(), float("-inf"), logits)
    logits = torch.where(logits.isposinf(), torch.finfo(torch.float32).max, logits)
    dead = logits.isneginf().all(dim=-1, keepdim=True)
    # Zeros instead of -inf keep NaN out of the softmax of these rows, hence out of their gradient.
    return torch.where(dead, 0.0, logits), dead


def _raise_on_nonfinite(logits: Tensor) -> None:
    bad = (logits.isnan() | logits.isposinf()).any(dim=-1) | logits.isneginf().all(dim=-1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"router_logits: row {row} holds NaN, +inf or nothing but -inf")


def _check(
    router_logits: Tensor,
    top_k: int,
    score: str,
    softmax_after: bool,
    bias: Tensor | None,
    num_groups: int,
    topk_groups: int,
    group_top: int,
    group_fill: str,
    nonfinite: str,
) -> None:
    if router_logits.dim() != 2 or not router_logits.is_floating_point():
        raise ValueError(f"router_logits: expected a floating [T, E], got {router_logits.dtype} {router_logits.shape}")
    num_experts = router_logits.shape[1]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: expected 1 .. {num_experts} (num_experts), got {top_k}")
    if score not in SCORES:
        raise ValueError(f"score: expected one of {SCORES}, got {score!r}")
    if softmax_after and score != "softmax":
        raise ValueError(f"softmax_after: needs score='softmax', got {score!r}")
    if bias is not None and bias.shape != (num_experts,):
        raise ValueError(f"bias: expected shape ({num_experts},), got {tuple(bias.shape)}")
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"num_groups: expected a divisor of {num_experts} (num_experts), got {num_groups}")
    if not 1 <= topk_groups <= num_groups:
        raise ValueError(f"topk_groups: expected 1 .. {num_groups} (num_groups), got {topk_groups}")
    if group_top < 1:
        raise ValueError(f"group_top: expected at least 1, got {group_top}")
    if group_fill not in GROUP_FILLS:
        raise ValueError(f"group_fill: expected one of {tuple(GROUP_FILLS)}, got {group_fill!r}")
    if nonfinite not in NONFINITE_POLICIES:
        raise ValueError(f"nonfinite: expected one of {NONFINITE_POLICIES}, got {nonfinite!r}")
    reachable = topk_groups * (num_experts // num_groups)
    if num_groups > 1 and group_fill == "-inf" and top_k > reachable:
        raise ValueError(f"top_k: {top_k} experts, but the best {topk_groups} groups hold only {reachable}")
