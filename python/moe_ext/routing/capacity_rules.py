"""How many slots an expert takes: every convention that published models use, under its name."""

import warnings
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from moe_ext.ops import _checks, expert_histogram
from moe_ext.routing._arguments import ceil_div, exact_ratio

Rule = Literal[
    "switch", "switch_ceil", "gshard", "fairseq", "fairseq_eval", "deepspeed", "megatron", "vmoe", "vmoe_round",
    "expert_choice",
]  # fmt: skip


class _Rule(NamedTuple):
    share: Literal["tokens/experts", "slots/experts", "ceil(tokens/experts)", "tokens"]
    rounding: Literal["down", "up", "nearest"]
    factor: float | None  # None: top_k
    minimum: int = 1
    multiple: int = 1


RULES: dict[str, _Rule] = {
    "switch": _Rule("tokens/experts", "down", 1.25),
    "switch_ceil": _Rule("tokens/experts", "up", 1.25),
    "gshard": _Rule("tokens/experts", "up", 2.0),
    "fairseq": _Rule("ceil(tokens/experts)", "down", None),
    "fairseq_eval": _Rule("tokens", "up", 0.25),
    "deepspeed": _Rule("slots/experts", "up", 1.0, minimum=4),
    "megatron": _Rule("slots/experts", "up", 1.0),
    "vmoe": _Rule("slots/experts", "up", 1.05, multiple=4),
    "vmoe_round": _Rule("slots/experts", "nearest", 1.05),
    "expert_choice": _Rule("tokens/experts", "down", 2.0),
}


def expert_capacity(
    num_tokens: int,
    num_experts: int,
    top_k: int = 1,
    *,
    rule: Rule = "megatron",
    factor: float | None = None,
    minimum: int | None = None,
) -> int:
    """How many slots each expert takes, C.

    With T = `num_tokens`, E = `num_experts`, K = `top_k` and f = `factor`; in brackets what f is unless given:

    | rule | C | source |
    |---|---|---|
    | "switch" | floor(T / E * f) [1.25] | Switch Transformer, arXiv:2101.03961 |
    | "switch_ceil" | ceil(T / E * f) [1.25] | the same, rounded up |
    | "gshard" | ceil(T / E * f) [2] | GShard, arXiv:2006.16668: 2 T / E for two choices |
    | "fairseq" | floor(f * ceil(T / E)) [K] | fairseq; f is a factor on top of one choice |
    | "fairseq_eval" | ceil(f * T) [0.25] | fairseq in evaluation |
    | "deepspeed" | ceil(T K / E * f) [1], at least 4 | DeepSpeed-MoE, arXiv:2201.05596 |
    | "megatron" | ceil(T K / E * f) [1] | Megatron-LM |
    | "vmoe" | ceil(T K / E * f) [1.05], then up to a multiple of 4 | V-MoE's code |
    | "vmoe_round" | round(T K / E * f) [1.05] | V-MoE, arXiv:2106.05974 |
    | "expert_choice" | floor(T / E * f) [2] | Zhou et al., arXiv:2202.09368: f experts for a token on average |

    The result is at least `minimum` and never more than T, since a token goes to an expert once. The factor is taken
    as the fraction that was meant, so that 100 * 0.07 is 7 and not a little more (the nearest one with a denominator up
    to 10^6). In local groups T is the size of a group.

    Args:
        num_tokens, num_experts, top_k: T, E, K.
        rule, factor: see the table.
        minimum: smallest capacity. None: 4 for "deepspeed", else 1.

    Raises:
        TypeError, ValueError: sizes or `minimum` that are no integers or too small, an unknown rule, a factor that is
            negative or not finite.
    """
    name = "routing.expert_capacity"
    _checks.is_int(name, "num_tokens", num_tokens, low=0)
    _checks.is_int(name, "num_experts", num_experts, low=1)
    _checks.is_int(name, "top_k", top_k, low=1)
    return make_rule(name, rule, factor, minimum).capacity(num_tokens, num_experts, top_k)


class PreparedRule(NamedTuple):
    """A rule with its numbers, so that nothing but integers is left to compute."""

    rule: str
    factor: tuple[int, int] | None  # None: top_k
    minimum: int

    def capacity(self, num_tokens: int, num_experts: int, top_k: int) -> int:
        share, rounding, _, _, multiple = RULES[self.rule]
        numerator, denominator = (top_k, 1) if self.factor is None else self.factor
        numerator *= {
            "tokens/experts": num_tokens,
            "slots/experts": num_tokens * top_k,
            "ceil(tokens/experts)": ceil_div(num_tokens, num_experts),
            "tokens": num_tokens,
        }[share]
        if share in ("tokens/experts", "slots/experts"):
            denominator *= num_experts
        if rounding == "down":
            capacity = numerator // denominator
        elif rounding == "up":
            capacity = ceil_div(numerator, denominator)
        else:
            capacity = (2 * numerator + denominator) // (2 * denominator)
        if self.rule == "vmoe_round" and not torch.compiler.is_compiling() and capacity < 1 <= num_tokens:
            warnings.warn(
                f"moe_ext.routing.expert_capacity: a capacity below 1 is raised to {self.minimum} "
                f"(rule {self.rule!r}, {num_tokens} tokens, {num_experts} experts)",
                stacklevel=3,
            )
        capacity = ceil_div(capacity, multiple) * multiple
        return min(max(capacity, self.minimum), num_tokens)


def make_rule(function: str, rule: str, factor: float | None, minimum: int | None) -> PreparedRule:
    """The rule, checked; `function` is named in errors."""
    _checks.is_choice(function, "rule", rule, tuple(RULES))
    default = RULES[rule]
    if factor is not None:
        _checks.is_number(function, "factor", factor, low=0.0)
    if minimum is not None:
        _checks.is_int(function, "minimum", minimum, low=0)
    factor = default.factor if factor is None else factor
    return PreparedRule(
        rule, None if factor is None else exact_ratio(factor), default.minimum if minimum is None else minimum
    )


def dynamic_capacity(
    topk_ids: Tensor,
    num_experts: int,
    *,
    factor: float = 0.0,
    group_size: int | None = None,
    process_group: Any = None,
) -> Tensor:
    """A capacity that follows the load, as a number on the device: nothing waits for it (Tutel, arXiv:2206.03382).

    * `factor == 0`: the largest number of slots of any expert, so nothing is dropped.
    * `factor < 0`: that, but at most ceil(|factor| T K / E).
    * `factor > 0`: ceil(factor T K / E), whatever the load.

    Args:
        topk_ids: [T, K] int32 or int64; sentinels are not counted.
        num_experts: E.
        factor: see above.
        group_size: T of the formulas, and the tokens that are counted together; None: all.
        process_group: take the largest over these ranks, so that their buffers have one size; None: this rank alone.

    Returns:
        int32 scalar tensor on the device of `topk_ids`.

    Raises:
        TypeError, ValueError: as `moe_ext.expert_histogram`; a factor that is not finite.
    """
    name = "routing.dynamic_capacity"
    _checks.is_number(name, "factor", factor)
    counts = expert_histogram(topk_ids, num_experts, group_size=group_size)
    num_tokens, top_k = topk_ids.shape
    numerator, denominator = exact_ratio(abs(factor))
    limit = ceil_div(numerator * (num_tokens if group_size is None else group_size) * top_k, denominator * num_experts)
    if factor > 0:
        # Made of the counts, so that it is on their device.
        capacity = counts.new_zeros(()) + limit
    else:
        # A batch without tokens may have no group to take the largest of.
        capacity = torch.cat([counts.flatten(), counts.new_zeros(1)]).amax()
        if factor < 0:
            capacity = capacity.clamp(max=limit)
    if process_group is not None:
        dist.all_reduce(capacity, op=dist.ReduceOp.MAX, group=process_group)
    return capacity
