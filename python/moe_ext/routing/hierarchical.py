"""Two levels of routing: first a group of experts, then experts in the group."""

import torch
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast
from moe_ext.routing.router import Router, RouterOutput


class HierarchicalRouter(nn.Module):
    """`G_i(x) * G_ij(x)` for the experts j of the groups i that a first gate chose (arXiv:1701.06538, appendix B).

    Experts are numbered through: expert j of group i of b is `i * b + j`. With the groups' K_p choices and K_s in each
    there are K = K_p * K_s slots. The `router_logits` it returns are `log p_i + log p_(j|i)`, p being the softmax of
    the two gates' logits: their softmax is the joint probability, so losses and metrics take them as any others,
    and `Importance_H` of the paper is the importance of the returned weights.

    With one group it is the flat router.

    Args:
        primary: a router over the groups.
        secondary: a router whose logits (and noise) are over all experts, [T, groups * b], and whose selection is over
            the b experts of a group: `Router(LinearLogits(H, 32), TopK(8, 2, softmax_after=True))` for four groups.
        num_groups: number of groups.

    Raises:
        ValueError: `num_groups` below 1; in forward, when it does not divide the number of secondary logits or isn't
            that of primary ones.
    """

    takes_token_mask = True

    def __init__(self, primary: Router, secondary: Router, *, num_groups: int) -> None:
        super().__init__()
        if num_groups < 1:
            raise ValueError(f"HierarchicalRouter: num_groups must be at least 1, got {num_groups}")
        self.primary = primary
        self.secondary = secondary
        self.num_groups = num_groups

    def forward(self, x: Tensor, *, gate_input: Tensor | None = None, **side: Tensor | None) -> RouterOutput:
        """[T, H] -> `RouterOutput` of groups * b experts, best first. Arguments as in `Router.forward`."""
        group_weights, group_ids, group_logits = self.primary(x, gate_input=gate_input, **side)
        logits = self.secondary.noisy_logits(x, gate_input=gate_input, **side)
        num_tokens, num_experts = logits.shape
        if group_logits.shape[1] != self.num_groups or num_experts % self.num_groups != 0:
            raise ValueError(
                f"HierarchicalRouter: num_groups = {self.num_groups} must be the number of primary logits, got "
                f"{group_logits.shape[1]}, and divide that of secondary logits, got {num_experts}"
            )
        size = num_experts // self.num_groups
        grouped = logits.reshape(num_tokens, self.num_groups, size)

        # One row per chosen group. A slot without a group takes the first one's and is cleared below.
        top_groups = group_ids.shape[1]
        index = group_ids.clamp(min=0).long()[:, :, None].expand(-1, -1, size)
        repeated = {
            name: value.repeat_interleave(top_groups, dim=0)
            if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1]
            else value
            for name, value in side.items()
        }
        weights, ids = self.secondary.selection(grouped.gather(1, index).reshape(-1, size), **repeated)
        with no_autocast(x.device.type):
            weights = weights.reshape(num_tokens, top_groups, -1)
            ids = ids.reshape(num_tokens, top_groups, -1)
            used = (ids >= 0) & (group_ids[:, :, None] >= 0)
            weights = torch.where(used, weights * group_weights[:, :, None], 0).flatten(1)
            ids = torch.where(used, group_ids[:, :, None] * size + ids, -1).flatten(1)
            joint = group_logits.log_softmax(dim=1)[:, :, None] + grouped.log_softmax(dim=2)
            return RouterOutput(*_best_first(weights, ids, num_experts), joint.flatten(1))

    def jitter_input(self, x: Tensor) -> Tensor:
        """As `Router.jitter_input`, with the jitter of the primary router."""
        return self.primary.jitter_input(x)


def _best_first(weights: Tensor, ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Slots by descending weight, ties by the lower id, empty ones last."""
    order = torch.where(ids < 0, num_experts, ids).argsort(dim=1, stable=True)
    weights, ids = weights.gather(1, order), ids.gather(1, order)
    order = torch.where(ids < 0, -torch.inf, weights.detach()).argsort(dim=1, descending=True, stable=True)
    return weights.gather(1, order), ids.gather(1, order)
