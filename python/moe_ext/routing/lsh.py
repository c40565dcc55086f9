"""Locality-sensitive hashing: the bucket of a hidden state, to be looked up like a token id."""

import torch
from torch import Tensor

from moe_ext.ops import _checks
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.routing._precision import Float32Module


class LSHBuckets(Float32Module):
    """The bucket of each token: one bit for each of `num_bits` random planes, 1 on the positive side.

    Directions that differ by an angle a share a bit with probability 1 - a / pi (Charikar 2002), so similar tokens
    often share a bucket. As a router (Dikkala et al. 2022 analyse this kind), a table says which expert a bucket has::

        buckets = LSHBuckets(H, 8)
        selection = HashSelection(random_table(buckets.num_buckets, E), E)
        topk_weights, topk_ids = selection(router_logits, token_ids=buckets(x))

    Args:
        hidden_size: H. num_bits: 1..30.
        generator: of the CPU; draws the planes. They are a buffer: saved, not trained.
        device: of the buffer.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    planes: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _checks.is_int("LSHBuckets", "hidden_size", hidden_size, low=1)
        _checks.is_int("LSHBuckets", "num_bits", num_bits, low=1, high=30)
        planes = torch.randn(num_bits, hidden_size, dtype=torch.float32, generator=generator)
        self.register_buffer("planes", planes.to(device) if device is not None else planes)

    @property
    def num_buckets(self) -> int:
        """2 to the power of `num_bits`."""
        return 1 << int(self.planes.shape[0])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T] int64 in 0..num_buckets-1."""
        with no_autocast(x.device.type):
            side = wide(x) @ self.planes.to(wide(x[:0]).dtype).T > 0
        return (side.long() << torch.arange(side.shape[1], device=x.device)).sum(1)

    def extra_repr(self) -> str:
        return f"hidden_size={self.planes.shape[1]}, num_bits={self.planes.shape[0]}"
