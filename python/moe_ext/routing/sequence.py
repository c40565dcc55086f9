"""Routing by sequence: one choice of experts for all tokens of a sequence."""

import torch
from torch import Tensor, nn

from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing.expert_bias import UpdateMode
from moe_ext.routing.router import Router, RouterOutput


def mean_of_sequences(
    x: Tensor, num_sequences: int, *, sequence_ids: Tensor | None = None, token_mask: Tensor | None = None
) -> Tensor:
    """The mean of the tokens of each sequence that are not padding.

    Args:
        x: [T, H], any float dtype.
        num_sequences: B.
        sequence_ids: [T] integers, to which sequence a token belongs; an id outside 0..B-1 belongs to none. None: the
            tokens of each sequence lie together and there are T / B of each.
        token_mask: [T] bool, False for padding.

    Returns:
        [B, H] float32 (float64 for float64 x); zeros for a sequence without tokens. The same bits from run to run.

    Raises:
        ValueError: B below 1; T not divisible by B, without `sequence_ids`; a wrong shape.
    """
    of_token = _sequence_ids(x, num_sequences, sequence_ids)
    with no_autocast(x.device.type):
        x = wide(x)
        if token_mask is not None:
            # What padding holds may be NaN.
            x = x.masked_fill(~token_mask[:, None], 0)
        if sequence_ids is None:
            shape = (num_sequences, x.shape[0] // num_sequences)
            sums = x.unflatten(0, shape).sum(1)
            counted = torch.ones_like(of_token, dtype=torch.bool) if token_mask is None else token_mask
            counts = counted.unflatten(0, shape).sum(1)
        else:
            member = of_token == torch.arange(num_sequences, device=x.device)[:, None]
            if token_mask is not None:
                member = member & token_mask
            counts = member.sum(1)
            # A product, not an index_add, whose order of summation is another one in every run on CUDA. A token of no
            # sequence may hold NaN, too.
            sums = member.to(x.dtype) @ x.masked_fill(~member.any(0)[:, None], 0)
        return sums / counts.clamp(min=1)[:, None]


class SequenceRouter(nn.Module):
    """Routes the mean of each sequence and gives its choice to all tokens of the sequence.

    Sentence-level gates (MoEBERT, arXiv:2204.07675) and gates on a whole instance (Octavius, arXiv:2311.02684). Where
    the cluster of an instruction decides (MoCLE, arXiv:2312.12379), clusters are tasks: see `TaskEmbeddingLogits`.
    Noise and jitter are drawn per sequence.

    Args:
        router: what routes the means.
    """

    takes_token_mask = True

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(
        self,
        x: Tensor,
        *,
        num_sequences: int,
        sequence_ids: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> RouterOutput:
        """[T, H] -> `RouterOutput` of T tokens. Arguments as in `mean_of_sequences`.

        Padding, and tokens of no sequence, get ids of -1 and weights of 0. A loss that should see a sequence once
        takes `router(mean_of_sequences(...))` instead.
        """
        means = mean_of_sequences(x, num_sequences, sequence_ids=sequence_ids, token_mask=token_mask)
        topk_weights, topk_ids, router_logits = self.router(means)
        sequence_ids = _sequence_ids(x, num_sequences, sequence_ids)
        known = (sequence_ids >= 0) & (sequence_ids < num_sequences)
        index = torch.where(known, sequence_ids, 0)
        used = (known if token_mask is None else known & token_mask)[:, None]
        # F.embedding, not index_select: its gradient is summed in a fixed order on CUDA, too.
        topk_weights = torch.where(used, nn.functional.embedding(index, topk_weights), 0)
        topk_ids = torch.where(used, topk_ids[index], -1)
        return RouterOutput(topk_weights, topk_ids, nn.functional.embedding(index, router_logits))

    def jitter_input(self, x: Tensor) -> Tensor:
        """As `Router.jitter_input`."""
        return self.router.jitter_input(x)

    @property
    def score(self) -> str:
        """That of the router."""
        return self.router.score

    @property
    def nonfinite(self) -> str:
        """That of the router."""
        return self.router.nonfinite

    @property
    def expert_bias(self) -> Tensor | None:
        """That of the router."""
        return self.router.expert_bias

    def update_expert_bias(self, counts: Tensor, rate: float = 1e-3, mode: UpdateMode = "sign") -> None:
        """As `Router.update_expert_bias`."""
        self.router.update_expert_bias(counts, rate, mode)


def _sequence_ids(x: Tensor, num_sequences: int, sequence_ids: Tensor | None) -> Tensor:
    if num_sequences < 1:
        raise ValueError(f"num_sequences must be at least 1, got {num_sequences}")
    if sequence_ids is None:
        if x.shape[0] % num_sequences != 0:
            raise ValueError(f"num_sequences must divide num_tokens = {x.shape[0]}, got {num_sequences}")
        length = max(x.shape[0] // num_sequences, 1)
        return torch.arange(x.shape[0], device=x.device) // length
    if sequence_ids.shape != x.shape[:1]:
        raise ValueError(f"sequence_ids must be [num_tokens] = ({x.shape[0]},), got {tuple(sequence_ids.shape)}")
    return sequence_ids
