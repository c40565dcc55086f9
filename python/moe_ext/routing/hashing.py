"""Hash routing: the expert of a token is looked up by what the token is, not computed from its hidden state."""

from typing import Literal

import torch
from torch import Tensor, nn

from moe_ext.ops import _checks
from moe_ext.ops.types import Routing
from moe_ext.routing._side_inputs import checked_ids

Key = Literal["token", "previous", "bigram", "position"]
KEYS = ("token", "previous", "bigram", "position")


class HashSelection(nn.Module):
    """Experts from a table, with weight 1 (Roller et al. 2021, arXiv:2106.04426).

    No parameters, no gradient for the router, no auxiliary loss. `moe_ext.routing.random_table` and its neighbours
    make tables; `key` says what they are indexed by:

    * `"token"`: the id of the token.
    * `"previous"`: the id of the token before it.
    * `"bigram"`: a hash of both, modulo the size of the table.
    * `"position"`: the place of the token in its sequence.

    The first token of a sequence is preceded by `first_id`.

    Args:
        table: [V] int32 or int64 with values in -1..num_experts-1, -1 for no expert; or [V, M] for M experts per
            token, see `moe_ext.routing.multi_hash_table`.
        num_experts: E.
        key: see above.
        first_id: see above; of the vocabulary.

    Raises:
        TypeError, ValueError: a table of another dtype, rank or range, or an unknown key.
    """

    table: Tensor

    def __init__(self, table: Tensor, num_experts: int, *, key: Key = "token", first_id: int = 0) -> None:
        super().__init__()
        name = "HashSelection"
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _checks.is_choice(name, "key", key, KEYS)
        _checks.is_int(name, "first_id", first_id, low=0)
        _checks.is_tensor(name, "table", table, _checks.ID_DTYPES)
        if table.dim() not in (1, 2) or table.numel() == 0:
            raise ValueError(f"moe_ext.{name}: table must be [V] or [V, M], got shape {tuple(table.shape)}")
        if table.device.type != "meta" and not bool(((table >= -1) & (table < num_experts)).all()):
            raise ValueError(f"moe_ext.{name}: table must hold values in -1..{num_experts - 1} (num_experts - 1)")
        self.num_experts = num_experts
        self.key = key
        self.first_id = first_id
        self.register_buffer("table", table.reshape(table.shape[0], -1).int())

    def forward(
        self,
        router_logits: Tensor,
        *,
        token_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_mask: Tensor | None = None,
        **_: object,
    ) -> Routing:
        """Look up.

        Args:
            router_logits: [T, E]; only its dtype matters.
            token_ids: [T] int32 or int64.
            sequence_ids: [T] integers, equal for neighbours in the same sequence; None if all of x is one sequence.
                Only keys that look at other tokens read it.
            token_mask: [T] bool. Tokens with False go to no expert, and their ids may be anything.

        Returns:
            `Routing` with weights 1, [T, M], float32 (float64 for float64 logits).

        Raises:
            ValueError: an id outside of the table, on the CPU. On other devices, where finding out would mean waiting
                for them, and inside of torch.compile, such a token goes to no expert.
        """
        num_tokens = router_logits.shape[0]
        key = self._key(checked_ids("HashSelection", "token_ids", token_ids, num_tokens=num_tokens), sequence_ids)
        name = "token_ids" if self.key in ("token", "previous") else "position"
        checked_ids("HashSelection", name, key, num_ids=self.table.shape[0], token_mask=token_mask)
        known = (key >= 0) & (key < self.table.shape[0])
        if token_mask is not None:
            known = known & token_mask.reshape(key.shape)
        topk_ids = self.table[key.masked_fill(~known, 0)].masked_fill(~known[:, None], -1)
        dtype = torch.float64 if router_logits.dtype == torch.float64 else torch.float32
        return Routing((topk_ids >= 0).to(dtype), topk_ids)

    def _key(self, token_ids: Tensor, sequence_ids: Tensor | None) -> Tensor:
        if self.key == "token":
            return token_ids
        if self.key == "position":
            return sequence_positions(token_ids, sequence_ids)
        previous = previous_ids(token_ids, sequence_ids, first_id=self.first_id)
        if self.key == "previous":
            return previous
        return bigram_hash(previous, token_ids, self.table.shape[0])

    def extra_repr(self) -> str:
        size, width = self.table.shape
        return f"table=[{size}, {width}], num_experts={self.num_experts}, key={self.key!r}"


def previous_ids(token_ids: Tensor, sequence_ids: Tensor | None = None, *, first_id: int = 0) -> Tensor:
    """The id before each token, `first_id` before the first of a sequence: [T] -> [T].

    Args:
        token_ids: [T]. sequence_ids: [T], equal for neighbours in the same sequence; None for one sequence.
    """
    return token_ids.roll(1).masked_fill(_starts(token_ids, sequence_ids), first_id)


def sequence_positions(token_ids: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
    """The place of each token in its sequence, from 0: [T] -> [T] int64. Arguments as for `previous_ids`."""
    place = torch.arange(token_ids.shape[0], device=token_ids.device)
    start = place.masked_fill(~_starts(token_ids, sequence_ids), 0)
    return place - start.cummax(0).values


def bigram_hash(previous: Tensor, token_ids: Tensor, num_ids: int) -> Tensor:
    """A hash of two ids in 0..num_ids-1, the same on every device: [T], [T] -> [T] int64."""
    # The finaliser of splitmix64 (Steele et al. 2014); int64 arithmetic wraps, and the sign is cleared at the end.
    state = previous.long() * -7046029254386353131 + token_ids.long()
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((state >> 31) & 0x7FFFFFFF) % num_ids


def _starts(token_ids: Tensor, sequence_ids: Tensor | None) -> Tensor:
    """[T] bool: is this the first token of a sequence?"""
    first = torch.arange(token_ids.shape[0], device=token_ids.device) == 0
    if sequence_ids is None:
        return first
    num_tokens = token_ids.shape[0]
    sequence_ids = checked_ids("HashSelection", "sequence_ids", sequence_ids, num_tokens=num_tokens)
    return first | (sequence_ids != sequence_ids.roll(1))
