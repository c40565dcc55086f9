"""S-BASE: while training tokens choose from a balanced matrix."""

import torch
from torch import Tensor, nn

from moe_ext.ops import route, sinkhorn
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing.balanced import sigmoid_at
from moe_ext.routing.expert_choice import weights_at


class Sinkhorn(nn.Module):
    """The `top_k` largest entries of each token in a balanced matrix while training, in the logits with `.eval()`.

    S-BASE (Clark et al. 2022, arXiv:2202.01169): the matrix is `moe_ext.sinkhorn(router_logits)`, with the same sum for
    each expert, a soft form of the assignment of BASE layers. The weights are those of the plain logits, through which
    alone gradients flow: their softmax over all experts, or with one choice their sigmoid, as in Megatron-LM.

    Args:
        num_experts, top_k: E, K.
        tolerance, max_iterations: as in `moe_ext.sinkhorn`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, num_experts: int, top_k: int = 1, *, tolerance: float = 1e-4, max_iterations: int = 100) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"Sinkhorn: top_k must be in 1..num_experts={num_experts}, got {top_k}")
        if not tolerance >= 0:
            raise ValueError(f"Sinkhorn: tolerance must be at least 0, got {tolerance}")
        if max_iterations < 0:
            raise ValueError(f"Sinkhorn: max_iterations must be at least 0, got {max_iterations}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def forward(self, router_logits: Tensor, *, token_mask: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K].

        Args:
            router_logits: [T, E]. NaN counts as -inf in the matrix; a token without a finite logit gets no expert
                while training.
            token_mask: [T] bool, False for tokens that get no expert and are not counted.
        """
        with no_autocast(router_logits.device.type):
            logits = wide(router_logits)
            if token_mask is not None:
                logits = logits.masked_fill(~token_mask[:, None], float("-inf"))
            if self.training:
                ranked = sinkhorn(logits, tolerance=self.tolerance, max_iterations=self.max_iterations)
                present = ranked.sum(dim=1, keepdim=True) > 0
            else:
                ranked = logits.detach()
                present = (
                    torch.ones_like(ranked[:, :1], dtype=torch.bool) if token_mask is None else token_mask[:, None]
                )
            ids = torch.where(present, route(ranked, self.top_k, score="none").topk_ids, -1)
            if self.top_k == 1:
                return Routing(sigmoid_at(logits, ids), ids)
            # A row of -inf has no softmax; nothing of this one is used.
            scores = torch.where(present, logits, 0.0).softmax(dim=1)
            return Routing(weights_at(scores, ids), ids)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, tolerance={self.tolerance}, "
            f"max_iterations={self.max_iterations}"
        )
