"""A router as a composition: logits, noise while training, selection."""

from typing import NamedTuple

from torch import Tensor, nn


class RouterOutput(NamedTuple):
    """What a router hands to the experts, and to the losses."""

    topk_weights: Tensor
    """[T, K] float32 (float64 for float64 input); 0 where no expert was chosen."""
    topk_ids: Tensor
    """[T, K] int32; -1 where no expert was chosen."""
    router_logits: Tensor
    """[T, E] float32 (float64 for float64 input), with the noise that the selection saw."""


class Router(nn.Module):
    """hidden states -> `RouterOutput`, in three parts that can be exchanged one by one.

    * `logits`: [T, H] -> router_logits [T, E]; see `moe_ext.routing.LinearLogits` and its neighbours.
    * `noise`: (router_logits, x) -> router_logits, or None; see `moe_ext.routing.GaussianNoise` and its neighbours.
    * `selection`: router_logits -> `Routing(topk_weights, topk_ids)`; see `moe_ext.routing.TopK` and its neighbours.

    `Router(LinearLogits(H, E), TopK(E, 2, renormalize=True))` is Mixtral's router.
    """

    def __init__(self, logits: nn.Module, selection: nn.Module, *, noise: nn.Module | None = None) -> None:
        super().__init__()
        self.logits = logits
        self.noise = noise
        self.selection = selection

    def forward(self, x: Tensor, *, gate_input: Tensor | None = None, **side: Tensor | None) -> RouterOutput:
        """Route.

        Args:
            x: [T, H], any float dtype.
            gate_input: what the logits are computed from instead of x, [T, anything the logits module takes]: pooled
                context, task or modality embeddings (Uni-Perceiver-MoE, arXiv:2206.04674).
            side: what the selection asks for beside the logits, such as `token_mask`, `token_ids` or `task_ids`, [T]
                each. A selection ignores what it has no use for.
        """
        gate_input = x if gate_input is None else gate_input
        router_logits = self.logits(gate_input)
        if self.noise is not None:
            router_logits = self.noise(router_logits, gate_input)
        topk_weights, topk_ids = self.selection(router_logits, **side)
        return RouterOutput(topk_weights, topk_ids, router_logits)
