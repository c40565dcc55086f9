"""Random routing: experts drawn without looking at the tokens (THOR)."""

from typing import Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops.types import Routing
from moe_ext.routing._random import draw_seed, random
from moe_ext.routing._side_inputs import checked_ids

Per = Literal["call", "sequence", "token"]
PER = ("call", "sequence", "token")


class RandomSelection(nn.Module):
    """One expert with weight 1, uniformly at random (THOR; Zuo et al. 2021, arXiv:2110.04260, section 3).

    THOR runs the model twice on the same batch, so with two draws in each layer, and adds a loss on the difference of
    the two predictions. Its published code draws one expert for the whole batch while training, its text one for each
    input: `per="call"` and `per="sequence"`.

    Args:
        num_experts: E.
        per: who shares a draw while training: everyone in the call, a sequence, or nobody ("token").
        eval_per: the same at evaluation; or "all", the mean of all experts: ids 0..E-1 with weights 1/E.

    Raises:
        ValueError: an unknown option.
    """

    def __init__(self, num_experts: int, *, per: Per = "call", eval_per: Per | Literal["all"] = "token") -> None:
        super().__init__()
        _checks.is_int("RandomSelection", "num_experts", num_experts, low=1)
        _checks.is_choice("RandomSelection", "per", per, PER)
        _checks.is_choice("RandomSelection", "eval_per", eval_per, (*PER, "all"))
        self.num_experts = num_experts
        self.per = per
        self.eval_per = eval_per

    def forward(
        self, router_logits: Tensor, *, sequence_ids: Tensor | None = None, seed: Tensor | None = None, **_: object
    ) -> Routing:
        """Draw.

        Args:
            router_logits: [T, E]; only its size and dtype matter.
            sequence_ids: [T] integers in 0..T-1, needed where sequences share a draw: the sequence of each token.
            seed: [1] int64 on the device of the logits, for the same draw again. None for one from torch's generator.

        Returns:
            `Routing` [T, 1], or [T, E] for "all".
        """
        num_tokens = router_logits.shape[0]
        dtype = torch.float64 if router_logits.dtype == torch.float64 else torch.float32
        per = self.per if self.training else self.eval_per
        if per == "all":
            ids = torch.arange(self.num_experts, dtype=torch.int32, device=router_logits.device)
            shape = (num_tokens, self.num_experts)
            return Routing(router_logits.new_full(shape, 1 / self.num_experts, dtype=dtype), ids.repeat(num_tokens, 1))

        seed = draw_seed(router_logits.device) if seed is None else seed
        if per == "sequence":
            sequences = checked_ids(
                "RandomSelection", "sequence_ids", sequence_ids, num_tokens=num_tokens, num_ids=max(num_tokens, 1)
            )
            ids = random_experts(seed, num_tokens, self.num_experts)[sequences]
        elif per == "token":
            ids = random_experts(seed, num_tokens, self.num_experts)
        else:
            ids = random_experts(seed, 1, self.num_experts).repeat(num_tokens)
        return Routing(router_logits.new_ones((num_tokens, 1), dtype=dtype), ids[:, None])

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, per={self.per!r}, eval_per={self.eval_per!r}"


def random_experts(seed: Tensor, num_draws: int, num_experts: int) -> Tensor:
    """`num_draws` experts, uniform and independent: int32 [num_draws], a function of `seed` ([1] int64) alone."""
    uniform = random(seed, (num_draws,), "uniform")
    # The largest uniform number may round to 1.
    return (uniform * num_experts).int().clamp(max=num_experts - 1)
