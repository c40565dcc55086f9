"""The same model and the same training step with two implementations of the experts, timed side by side.

The contender is what a Hugging Face model runs by default: the experts of `DeepseekV3` from transformers with its
"grouped_mm" function (and its "eager" loop over the experts), plain PyTorch throughout. It gets the very weights of
the model, so both compute the same function; only the experts change hands.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from moe_ext.nn.experts import Experts

    from .model import LanguageModel

HF_IMPLEMENTATIONS = ("grouped_mm", "eager")


class HuggingFaceExperts(nn.Module):
    """transformers' `DeepseekV3Experts` behind the call of `moe_ext.nn.Experts`, on that module's weights.

    Raises ImportError where transformers is missing or too old to have these experts.
    """

    def __init__(self, experts: Experts, implementation: str) -> None:
        super().__init__()
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

        num_experts, hidden_size, intermediate_size = experts.w_down.shape
        config = DeepseekV3Config(
            hidden_size=hidden_size, moe_intermediate_size=intermediate_size, n_routed_experts=num_experts
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            self.experts = DeepseekV3Experts(config)
        self.experts.gate_up_proj, self.experts.down_proj = experts.w_gate_up, experts.w_down

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        return self.experts(x.flatten(0, -2), topk_ids.long(), topk_weights).reshape(x.shape)


@contextmanager
def experts_replaced(model: LanguageModel, implementation: str) -> Iterator[None]:
    """Within the context every MoE layer runs transformers' experts; "moe_ext" leaves the model as it is."""
    layers: list[Any] = list(model.moe_layers())
    own = [layer.experts for layer in layers]
    if implementation != "moe_ext":
        for layer in layers:
            layer.experts = HuggingFaceExperts(layer.experts, implementation)
    try:
        yield
    finally:
        for layer, experts in zip(layers, own, strict=True):
            layer.experts = experts


def compare(
    model: LanguageModel, train_step: Callable[[], object], tokens: int, seconds: float, rounds: int = 15
) -> dict[str, list[float]]:
    """Tokens per second of `train_step` with each implementation of the experts, one number per round.

    The implementations take turns within each round, so that a slow moment of the machine hits all of them; the
    first round only warms up. Ends after `rounds`, or `seconds` once there are three. Implementations that this
    machine lacks are left out.
    """
    names = ["moe_ext"]
    for name in HF_IMPLEMENTATIONS:
        try:
            with experts_replaced(model, name):
                names.append(name)
        except ImportError:
            pass
    rates: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds + 1):
        for name in names:
            with experts_replaced(model, name):
                before = time.perf_counter()
                train_step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                taken = time.perf_counter() - before
            if number > 0:
                rates[name].append(tokens / taken)
        if number >= 3 and time.perf_counter() - started > seconds:
            break
    return rates


def summarize(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, slowest, fastest and number of the steps of each implementation."""
    return {
        name: {"median": statistics.median(r), "min": min(r), "max": max(r), "steps": len(r)}
        for name, r in rates.items()
    }
