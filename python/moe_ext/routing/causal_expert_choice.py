"""Expert choice that never looks ahead."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast
from moe_ext.ops.types import Routing
from moe_ext.routing.expert_choice import (
    capacity_on_device,
    capacity_rule,
    check_options,
    count_groups,
    masked_scores,
    route_among,
)


class CausalExpertChoice(nn.Module):
    """An expert takes a token if it is among its best ones so far.

    Token i of a sequence goes to expert e if fewer than `max(1, floor(c (i + 1) / E))` of the tokens before it score
    as well or better with e: it is one of those that expert choice (Zhou et al. 2022, arXiv:2202.09368) would choose
    if the sequence ended with it. Later tokens change nothing, so training, evaluation and decoding agree; decoding
    needs the logits of the tokens before, not their hidden states. Balance is not exact: of tokens in random order
    each expert gets about `c n / E`, of scores that rise along the sequence more. Scores, weights and gradients are
    those of `ExpertChoice`.

    Args:
        num_experts, capacity_factor, max_experts_per_token, group_size: as in `ExpertChoice`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        max_experts_per_token: int | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        check_options("CausalExpertChoice", num_experts, capacity_factor, max_experts_per_token, group_size)
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.rule = capacity_rule(capacity_factor)
        self.max_experts_per_token = num_experts if max_experts_per_token is None else max_experts_per_token
        self.group_size = group_size

    def forward(
        self,
        router_logits: Tensor,
        *,
        token_mask: Tensor | None = None,
        num_sequences: int | None = None,
        **_: object,
    ) -> Routing:
        """As `ExpertChoice.forward`. Masked tokens are not counted as tokens before."""
        with no_autocast(router_logits.device.type):
            num_tokens = router_logits.shape[0]
            scores = masked_scores(router_logits, token_mask)
            num_groups = count_groups("CausalExpertChoice", num_tokens, self.group_size, num_sequences)
            present = torch.ones_like(scores[:, :1], dtype=torch.bool) if token_mask is None else token_mask[:, None]
            # Scores are in [0, 1]: below them is nobody, above them NaN.
            keys = torch.where(present, scores.detach().nan_to_num(nan=2.0), -1.0)
            shape = (num_groups, num_tokens // num_groups, self.num_experts)
            better = count_earlier_at_least(keys.view(shape)).view_as(keys)
            so_far = present.view(*shape[:2], 1).cumsum(1).view(-1, 1)
            capacity = capacity_on_device(so_far, self.num_experts, self.rule)
            return route_among(scores, (better < capacity) & present, self.max_experts_per_token)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, "
            f"max_experts_per_token={self.max_experts_per_token}, group_size={self.group_size}"
        )


# An op of its own: the number of its steps depends on n, and a compiled model would be tied to one length.
@torch.library.custom_op("moe_ext_routing::count_earlier_at_least", mutates_args=())
def count_earlier_at_least(keys: Tensor) -> Tensor:
    """[G, n, E] -> for each key, how many of the same column come before it in n and are no smaller. No NaN.

    Halves are merged as in a merge sort: what a left half adds to the counts of its right half is found by a binary
    search, so time grows with n log(n)^2, not with n^2.
    """
    num_groups, size, num_experts = keys.shape
    levels = max(size - 1, 0).bit_length()
    padded = F.pad(keys.mT, (0, (1 << levels) - size), value=float("-inf")).contiguous()
    counts = torch.zeros_like(padded, dtype=torch.int64)
    for level in range(levels):
        half = 1 << level
        pairs = padded.view(num_groups, num_experts, -1, 2, half)
        left = pairs[..., 0, :].sort(dim=-1).values
        smaller = torch.searchsorted(left, pairs[..., 1, :].contiguous())
        counts.view_as(pairs)[..., 1, :] += half - smaller
    return counts[..., :size].mT.contiguous()


@count_earlier_at_least.register_fake
def _count_earlier_at_least_fake(keys: Tensor) -> Tensor:
    return keys.new_empty(keys.shape, dtype=torch.int64)
