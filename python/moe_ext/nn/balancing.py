"""The bias update of every MoE layer of a model, with one message between the ranks."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from moe_ext.nn.moe import MoE


@torch.no_grad()
def update_expert_biases(
    model: nn.Module,
    rate: float = 1e-3,
    mode: Literal["sign", "rms", "proportional"] = "sign",
    group: "dist.ProcessGroup | None" = None,
) -> None:
    """`MoE.update_expert_bias` for all layers of `model` that were built with `aux_loss_free=True`.

    Once per optimizer step, after it: the layers have counted every forward pass in training mode since the last
    call, so accumulation steps are in. The counts are summed over `group` (the default process group if
    torch.distributed is initialised) in one all-reduce. Works on models inside DistributedDataParallel and after
    `fully_shard`: counts and biases are no parameters and are never sharded. On its own it can be registered as a hook:
    `optimizer.register_step_post_hook(lambda *_: update_expert_biases(model))`.

    Args:
        model: any module. Layers that appear in it several times are updated once.
        rate, mode: see `moe_ext.routing.update_expert_bias` (arXiv:2408.15664, algorithm 1).
        group: the ranks whose tokens count together.

    Raises:
        ValueError: `model` has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, MoE) and module.expert_counts is not None]
    if not layers:
        raise ValueError("update_expert_biases: model has no MoE layer with aux_loss_free=True")
    if dist.is_available() and dist.is_initialized():
        counts = torch.cat([layer.expert_counts for layer in layers if layer.expert_counts is not None])
        dist.all_reduce(counts, group=group)
        sizes = [layer.num_experts for layer in layers]
        for layer, summed in zip(layers, counts.split(sizes), strict=True):
            layer.expert_counts = summed.clone()
    for layer in layers:
        layer.apply_expert_counts(rate, mode)
