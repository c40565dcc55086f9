"""EvoMoE: a gate that is dense in the beginning and sparse in the end."""

from typing import Literal

import torch
from torch import Tensor

from moe_ext.ops import _checks, route
from moe_ext.ops._precision import no_autocast, wide
from moe_ext.ops.types import Routing
from moe_ext.routing._precision import Float32Module
from moe_ext.routing._random import draw_seed, random
from moe_ext.routing._slots import fill_slots


class DenseToSparseSelection(Float32Module):
    """The experts with `p > threshold`, where `p = softmax((z + Gumbel noise) / temperature)` are also the weights.

    EvoMoE; Nie et al. 2021, arXiv:2112.14397, the dense-to-sparse gate. A high temperature makes p nearly uniform, so
    all experts pass; as it falls, fewer do. The best one always stays. In the end `make_sparse` turns this into plain
    top-k. p is not normalised again.

    Args:
        num_experts: E.
        threshold: in 0 <= threshold < 1. Below 1/E, every expert passes at a high temperature.
        max_experts: K, the slots per token, 1..E; None for E. A token keeps its best.
        temperature: first value of the buffer `temperature`, above 0. Anneal it with
            `selection.temperature.fill_(annealed_temperature(step, steps))`, which neither recompiles nor waits.
        gumbel: add standard Gumbel noise while training.
        device: of the buffer.

    Raises:
        TypeError, ValueError: an option of the wrong type or range.
    """

    temperature: Tensor

    def __init__(
        self,
        num_experts: int,
        *,
        threshold: float,
        max_experts: int | None = None,
        temperature: float = 2.0,
        gumbel: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = "DenseToSparseSelection"
        max_experts = num_experts if max_experts is None else max_experts
        _checks.is_int(name, "num_experts", num_experts, low=1)
        _checks.is_int(name, "max_experts", max_experts, low=1, high=num_experts, why=" (num_experts)")
        _checks.is_number(name, "threshold", threshold, low=0.0)
        _checks.is_number(name, "temperature", temperature, above=0.0)
        if threshold >= 1:
            raise ValueError(f"moe_ext.{name}: threshold must be below 1, got {threshold}")
        self.num_experts = num_experts
        self.max_experts = max_experts
        self.threshold = threshold
        self.gumbel = gumbel
        self.top_k: int | None = None
        self.initial_temperature = temperature
        self.register_buffer("temperature", torch.empty((), dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperature to its first value."""
        self.temperature.fill_(self.initial_temperature)

    def make_sparse(self, top_k: int = 1) -> None:
        """From now on the `top_k` best, in `top_k` slots, whatever the threshold. Not part of the state dict."""
        _checks.is_int("DenseToSparseSelection", "top_k", top_k, low=1, high=self.num_experts, why=" (num_experts)")
        self.top_k = top_k

    def forward(self, router_logits: Tensor, *, seed: Tensor | None = None, **_: object) -> Routing:
        """[T, E] -> weights [T, K], ids [T, K].

        `seed` ([1] int64 on the device of the logits) repeats a draw of the noise; None for one from torch's generator.
        """
        with no_autocast(router_logits.device.type):
            logits = wide(router_logits)
            if self.gumbel and self.training:
                seed = draw_seed(logits.device) if seed is None else seed
                logits = logits + random(seed, tuple(logits.shape), "gumbel").to(logits.dtype)
            probabilities = (logits / self.temperature).softmax(dim=-1)
            if self.top_k is not None:
                return route(probabilities, self.top_k, score="none")
            expert = torch.arange(self.num_experts, device=logits.device)
            best = expert == probabilities.detach().argmax(dim=1, keepdim=True)
            selected = (probabilities > self.threshold) | best
            return fill_slots(selected, probabilities, probabilities, self.max_experts)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, threshold={self.threshold}, max_experts={self.max_experts}, "
            f"gumbel={self.gumbel}, top_k={self.top_k}"
        )


def annealed_temperature(
    step: int,
    num_steps: int,
    *,
    start: float = 2.0,
    end: float = 0.3,
    shape: Literal["linear", "exponential"] = "linear",
) -> float:
    """From `start` at step 0 to `end` at step `num_steps`, and `end` from then on (2.0 to 0.3 in arXiv:2112.14397).

    Raises:
        ValueError: `num_steps` below 1, a temperature that is not above 0, or an unknown shape.
    """
    name = "annealed_temperature"
    _checks.is_int(name, "step", step, low=0)
    _checks.is_int(name, "num_steps", num_steps, low=1)
    _checks.is_number(name, "start", start, above=0.0)
    _checks.is_number(name, "end", end, above=0.0)
    _checks.is_choice(name, "shape", shape, ("linear", "exponential"))
    progress = min(step / num_steps, 1.0)
    if shape == "linear":
        return start + (end - start) * progress
    return start * (end / start) ** progress


@torch.no_grad()
def diversify_experts(
    weight: Tensor, num_experts: int, *, mask_rate: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """E copies of one expert's weight, each with other entries set to 0: [...] -> [E, ...].

    How EvoMoE makes many experts of the one that it trains first (arXiv:2112.14397, expert-diversify).

    Args:
        weight: of the one expert, any shape. num_experts: E.
        mask_rate: the share of entries that each copy loses, 0 <= mask_rate < 1.
        generator: chooses them; of the device of `weight`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    _checks.is_int("diversify_experts", "num_experts", num_experts, low=1)
    _checks.is_number("diversify_experts", "mask_rate", mask_rate, low=0.0)
    if mask_rate >= 1:
        raise ValueError(f"moe_ext.diversify_experts: mask_rate must be below 1, got {mask_rate}")
    copies = weight.detach().expand(num_experts, *weight.shape)
    dropped = torch.rand(copies.shape, device=weight.device, generator=generator) < mask_rate
    return copies.masked_fill(dropped, 0)
