"""Weights that `moe_ext.route` doesn't compute, for the experts that any selection chose."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._wrapper import SelectionWrapper

Score = Literal["softmax", "softmax_after", "sigmoid", "sqrtsoftplus", "relu", "none", "one"]
SCORES: tuple[Score, ...] = ("softmax", "softmax_after", "sigmoid", "sqrtsoftplus", "relu", "none", "one")


class _Weighing(SelectionWrapper):
    """A selection whose ids are those of another one."""

    @property
    def expert_bias(self) -> Tensor | None:
        """That of the selection inside."""
        return getattr(self.selection, "expert_bias", None)


class NormalizeWeights(_Weighing):
    """Divides the weights of a token by their p-norm: `w_j / (||w||_p + eps) * scale`.

    * `p=1`, `p=2`: DBRX (Databricks 2024; `moe_normalize_expert_weights`). For `p=2`,
      `dw_j/ds_i = (1{i=j} - w_i w_j) / ||s||_2`.
    * `p=1, detach=True`: MoA, `w_j = s_j / sg[sum s]` (Zhang et al. 2022, arXiv:2210.05144): the gradient
      of s itself, which softmax scores carry to all logits of the token, chosen or not.
    * `p=None, floor=1e-4`: the public code of Mod-Squad, which adds that to every score.

    Args:
        selection: any selection whose weights are not normalised yet.
        p: which norm; None for no division.
        detach: take the norm for a constant in backward.
        floor: added to the weight of every chosen expert before all else.
        eps: see above.
        scale: factor, applied last.

    Raises:
        ValueError: `p` not positive.
    """

    def __init__(
        self,
        selection: nn.Module,
        *,
        p: float | None = 1.0,
        detach: bool = False,
        floor: float = 0.0,
        eps: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(selection)
        if p is not None and not p > 0:
            raise ValueError(f"NormalizeWeights: p must be positive or None, got {p}")
        self.p = p
        self.detach = detach
        self.floor = floor
        self.eps = eps
        self.scale = scale

    @property
    def score(self) -> str:
        """That of the selection inside."""
        return getattr(self.selection, "score", "softmax")

    def forward(self, router_logits: Tensor, **side: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        weights, topk_ids = self.selection(router_logits, **side)
        used = topk_ids >= 0
        with no_autocast(weights.device.type):
            if self.floor != 0:
                weights = torch.where(used, weights + self.floor, 0)
            if self.p is not None:
                norm = torch.linalg.vector_norm(weights, self.p, dim=1, keepdim=True) + self.eps
                # Who chose nobody, or only zeros, stays at zero.
                norm = torch.where(norm > 0, norm, 1)
                weights = weights / (norm.detach() if self.detach else norm)
            return Routing(weights * self.scale, topk_ids)

    def extra_repr(self) -> str:
        return f"p={self.p}, detach={self.detach}, floor={self.floor}, eps={self.eps}, scale={self.scale}"


class Reweigh(_Weighing):
    """Chooses by one score and weighs by another: ids of `selection`, weights `score(router_logits)` of those.

    Any monotone function that isn't negative can weigh what sigmoid scores and a bias chose (Wang et al. 2024,
    arXiv:2408.15664). Llama 4 ranks the logits and weighs by their sigmoid. Where gradients are concerned only `score`
    counts: "softmax" reaches all logits of a token, the others those of the chosen experts. A NaN
    or +inf acts as it does in `torch.softmax`.

    Args:
        selection: any selection; its weights are discarded.
        score: "softmax" over all experts; "softmax_after" over the chosen ones; "sigmoid"; "sqrtsoftplus"; "relu";
            "none", the logits themselves; "one", weights of 1; or a function of [T, K] logits.
        eps, renormalize: divide the weights of a token by (their sum + eps).
        scale: factor, applied last.

    Raises:
        ValueError: an unknown `score`.
    """

    def __init__(
        self,
        selection: nn.Module,
        score: Score | Callable[[Tensor], Tensor],
        *,
        renormalize: bool = False,
        eps: float = 1e-20,
        scale: float = 1.0,
    ) -> None:
        super().__init__(selection)
        if not callable(score) and score not in SCORES:
            raise ValueError(f"Reweigh: score must be one of {', '.join(SCORES)} or a function, got {score!r}")
        self.score = score
        self.renormalize = renormalize
        self.eps = eps
        self.scale = scale

    def forward(self, router_logits: Tensor, **side: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        topk_ids = self.selection(router_logits, **side).topk_ids
        used = topk_ids >= 0
        with no_autocast(router_logits.device.type):
            # Rows without an expert may hold anything; zeros keep it out of the gradient.
            logits = torch.where(used.any(dim=1, keepdim=True), wide(router_logits), 0)
            weights = torch.where(used, self._scores(logits, topk_ids, used), 0)
            if self.renormalize:
                weights = weights / (weights.sum(dim=1, keepdim=True) + self.eps)
            return Routing(weights * self.scale, topk_ids)

    def _scores(self, logits: Tensor, topk_ids: Tensor, used: Tensor) -> Tensor:
        index = topk_ids.clamp(min=0).long()
        if self.score == "softmax":
            return logits.softmax(dim=1).gather(1, index)
        chosen = logits.gather(1, index)
        if callable(self.score):
            return self.score(chosen)
        if self.score == "softmax_after":
            # The finite minimum, not -inf: a row without an expert would be NaN.
            return chosen.masked_fill(~used, torch.finfo(chosen.dtype).min).softmax(dim=1)
        if self.score == "sigmoid":
            return chosen.sigmoid()
        if self.score == "sqrtsoftplus":
            softplus = torch.logaddexp(chosen, torch.zeros_like(chosen))
            # The root has an infinite slope at 0, where softplus underflows to; the slope of the whole tends to 0.
            return torch.where(softplus == 0, 0, torch.where(softplus == 0, 1, softplus).sqrt())
        if self.score == "relu":
            return chosen.relu()
        return torch.ones_like(chosen) if self.score == "one" else chosen

    def extra_repr(self) -> str:
        return f"score={self.score!r}, renormalize={self.renormalize}, eps={self.eps}, scale={self.scale}"
