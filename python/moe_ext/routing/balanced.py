"""BASE layers: while training every expert gets the same number of tokens, by an assignment."""

import torch
from torch import Tensor, nn

from moe_ext.ops import auction, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing


class Balanced(nn.Module):
    """One expert for each token: the best balanced assignment while training, the best expert with `.eval()`.

    BASE layers (Lewis et al. 2021, arXiv:2103.16716): the assignment maximises the sum of the logits of the chosen
    pairs with at most `ceil(T / E)` tokens for each expert, by `moe_ext.auction`. The weight is `sigmoid(logit)` of the
    chosen expert, through which alone gradients flow. No balancing loss is needed. The logits are a plain product with
    the experts' centroids, initialised by `orthogonal_centroids_`.

    With data parallelism, the paper assigns over the tokens of all ranks in turn, shuffled; this module assigns those
    it is given.

    Args:
        num_experts: E.
        max_rounds: of the auction.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, num_experts: int, *, max_rounds: int = 1000) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"Balanced: num_experts must be at least 1, got {num_experts}")
        if max_rounds < 0:
            raise ValueError(f"Balanced: max_rounds must be at least 0, got {max_rounds}")
        self.num_experts = num_experts
        self.max_rounds = max_rounds

    def forward(self, router_logits: Tensor, *, token_mask: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, 1], ids [T, 1].

        Args:
            router_logits: [T, E]. Logits that are not finite count as the lowest finite one in the assignment.
            token_mask: [T] bool, False for tokens that get no expert and are not counted.
        """
        with no_autocast(router_logits.device.type):
            if self.training:
                ids = auction(router_logits, token_mask=token_mask, max_rounds=self.max_rounds)[:, None]
            else:
                ids = route(router_logits.detach(), 1, score="none").topk_ids
                if token_mask is not None:
                    ids = torch.where(token_mask[:, None], ids, -1)
            return Routing(sigmoid_at(wide(router_logits), ids), ids)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, max_rounds={self.max_rounds}"


def sigmoid_at(logits: Tensor, topk_ids: Tensor) -> Tensor:
    """sigmoid(logits) at ids, 0 where the id is -1."""
    chosen = logits.gather(1, topk_ids.clamp(min=0).long())
    # Replaced before the sigmoid: what is there may be NaN, and so would be 0 times its gradient.
    return torch.where(topk_ids >= 0, chosen, 0.0).sigmoid() * (topk_ids >= 0)


def orthogonal_centroids_(logits: nn.Module, *, gain: float = 0.1) -> nn.Module:
    """Initialises the weight [E, H] of a logits module, such as `LinearLogits`, to orthogonal rows of length `gain`, as
    BASE layers do (arXiv:2103.16716); returns the module.

    Raises:
        TypeError: a module without such a weight.
    """
    weight = getattr(logits, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(f"orthogonal_centroids_: logits must have a weight [E, H], got {type(logits).__name__}")
    nn.init.orthogonal_(weight, gain)
    return logits
