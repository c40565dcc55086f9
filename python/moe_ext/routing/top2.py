"""GShard's pair of experts: the best one, and a second one that is taken always, sometimes, or by lot."""

from typing import Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._random import draw_seed, random

SecondExpert = Literal["all", "random", "sample"]


class Top2(nn.Module):
    """Top-2 gating of GShard (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1).

    The weights are the softmax scores of the two, divided by their sum. What capacity then drops is the next stage's
    business: with `renormalize=True` the other weight stays as it is, as the paper has it; fairseq and DeepSpeed
    divide by the sum of what was kept, which is `renormalize=False` here and a capacity that renormalises.

    Args:
        num_experts: E, at least 2.
        second_expert: "all": the second best, always. "random": the second best, with the probability
            min(1, g_2 / threshold), and else nobody (id -1), so that it takes up no capacity. "sample": drawn from the
            softmax over all but the best (Gumbel-max; fairseq's "sampling", DeepSpeed).
        renormalize: see above.
        threshold: of "random", on g_2 as it is returned: 0.5 in GShard (`2 g_2 > u`), 0.2 in ST-MoE
            (arXiv:2202.08906).
        at_eval: draw in evaluation, too; else it is "all" there.

    Raises:
        ValueError: fewer than two experts, an unknown `second_expert`, a `threshold` that is not positive.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        second_expert: SecondExpert = "all",
        renormalize: bool = True,
        threshold: float = 0.5,
        at_eval: bool = False,
    ) -> None:
        super().__init__()
        if num_experts < 2:
            raise ValueError(f"Top2: num_experts must be at least 2, got {num_experts}")
        if second_expert not in ("all", "random", "sample"):
            raise ValueError(f'Top2: second_expert must be "all", "random" or "sample", got {second_expert!r}')
        if not threshold > 0:
            raise ValueError(f"Top2: threshold must be positive, got {threshold}")
        self.num_experts = num_experts
        self.second_expert = second_expert
        self.renormalize = renormalize
        self.threshold = threshold
        self.at_eval = at_eval

    def forward(self, router_logits: Tensor, *, sample: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, 2], ids [T, 2].

        `sample` takes the place of the random numbers: [T] uniform for "random", [T, E] Gumbel for "sample".
        """
        drawing = self.second_expert != "all" and (self.training or self.at_eval)
        with no_autocast(router_logits.device.type):
            if not drawing:
                return route(router_logits, 2, renormalize=self.renormalize)
            if self.second_expert == "sample":
                return self._sampled(wide(router_logits), sample)
            weights, ids = route(router_logits, 2, renormalize=self.renormalize)
            if sample is None:
                sample = random(draw_seed(weights.device), (weights.shape[0],), "uniform")
            taken = weights[:, 1].detach() > self.threshold * sample
            taken = torch.stack([torch.ones_like(taken), taken], dim=1)
            return Routing(torch.where(taken, weights, 0), torch.where(taken, ids, -1))

    def _sampled(self, router_logits: Tensor, sample: Tensor | None) -> Routing:
        best = route(router_logits.detach(), 1, score="none").topk_ids.long()
        if sample is None:
            sample = random(draw_seed(best.device), tuple(router_logits.shape), "gumbel")
        others = (router_logits.detach() + sample).scatter(1, best, -torch.inf)
        ids = torch.cat([best, others.argmax(dim=1, keepdim=True)], dim=1)
        weights = router_logits.softmax(dim=1).gather(1, ids)
        if self.renormalize:
            weights = weights / weights.sum(dim=1, keepdim=True)
        return Routing(weights, ids.to(torch.int32))

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, second_expert={self.second_expert!r}, renormalize={self.renormalize}, "
            f"threshold={self.threshold}, at_eval={self.at_eval}"
        )
