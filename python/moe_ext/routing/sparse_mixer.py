"""SparseMixer: experts one after the other, sampled while training, with a gradient estimate for the sampling."""

import torch
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._random import draw_seed, random


class SparseMixer(nn.Module):
    """SparseMixer-v2 (Liu et al. 2024, arXiv:2409.12136), the selection of GRIN-MoE and Phi-3.5-MoE.

    For each of the K choices, among the experts not chosen before: those whose logit z lies further from the best one,
    m, than `(m - z) / max(|z|, m) <= 2 margin` drop out; the weight is the softmax over those that remain. Evaluation
    takes the best. Training samples from that softmax, and where the sample isn't the best, three times of four its
    weight is a third of it: with the gradient of the full weight this is Heun's third-order estimate of the gradient
    through the sampling.

    Weights of different choices are separate softmaxes: their sum is up to K.

    Args:
        num_experts, top_k: E, K.
        margin: see above; 0.01 in Phi-3.5-MoE, where it is called jitter.

    Raises:
        ValueError: `top_k` outside 1..num_experts, or a negative `margin`.
    """

    def __init__(self, num_experts: int, top_k: int = 2, *, margin: float = 0.01) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"SparseMixer: top_k must be in 1..num_experts={num_experts}, got {top_k}")
        if margin < 0:
            raise ValueError(f"SparseMixer: margin must be at least 0, got {margin}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.margin = margin

    def forward(self, router_logits: Tensor, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K]."""
        with no_autocast(router_logits.device.type):
            router_logits = wide(router_logits)
            left = router_logits
            weights, ids = [], []
            for _k in range(self.top_k):
                weight, chosen = self._choose(router_logits, left)
                left = left.scatter(1, chosen, -torch.inf)
                weights.append(weight)
                ids.append(chosen)
            return Routing(torch.cat(weights, dim=1), torch.cat(ids, dim=1).to(torch.int32))

    def _choose(self, router_logits: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and id, [T, 1] each, of one more expert among those whose logit in `left` isn't -inf."""
        z = router_logits.detach()
        best = left.detach().amax(dim=1, keepdim=True)
        far = (best - z) / z.abs().maximum(best) > 2 * self.margin
        near = left.masked_fill(far, -torch.inf)
        chosen = top = near.detach().argmax(dim=1, keepdim=True)
        if self.training:
            gumbel = random(draw_seed(z.device), tuple(z.shape), "gumbel")
            chosen = (near.detach() + gumbel).argmax(dim=1, keepdim=True)
        weight = near.softmax(dim=1).gather(1, chosen)
        if self.training:
            uniform = random(draw_seed(z.device), (z.shape[0], 1), "uniform")
            full = (chosen == top) | (uniform > 0.75)
            # The value of a third, the gradient of the whole.
            weight = weight - torch.where(full, 0, weight.detach() * (2 / 3))
        return weight, chosen

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, margin={self.margin}"
