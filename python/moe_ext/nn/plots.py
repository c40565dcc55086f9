"""A picture of the load, for people who look rather than read. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#9aa5b1"


def plot_load(counts: Tensor, *, path: str | Path | None = None, axes: Axes | None = None, title: str = "") -> Axes:
    """Draw how the load is spread over the experts, as multiples of an even share.

    One layer (or one sum over layers) becomes bars, the busiest expert marked; several become a heat map with a row
    for each, so that it shows which layers starve which experts.

    Args:
        counts: [E], or [layers, E] (also steps by experts): slots per expert, such as `RoutingMetrics.counts` or
            `MoE.expert_counts`. Copied to the CPU.
        path: where to save the picture; its suffix decides the format.
        axes: matplotlib axes to draw on; None makes a figure of its own.
        title: text above it; MaxVio (arXiv:2408.15664) of the worst row is added.

    Returns:
        The axes, for whoever wants to change something.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `counts` has no experts, or not one or two dimensions.
    """
    if counts.dim() not in (1, 2) or counts.shape[-1] == 0:
        raise ValueError(f"plot_load: counts must be [E] or [layers, E] with E > 0, got {tuple(counts.shape)}")
    from matplotlib.figure import Figure

    load = counts.detach().to("cpu", torch.float64)
    load = load / load.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    if axes is None:
        # Not pyplot: no state of the caller's is touched, and no display is needed.
        axes = Figure(figsize=(8, 3.5), layout="constrained", dpi=150).subplots()
    num_experts = load.shape[-1]
    if load.dim() == 1:
        colors = [_ORANGE if value == load.max() and value > 1 else _BLUE for value in load]
        axes.bar(range(num_experts), load.numpy(), color=colors, width=0.8)
        axes.axhline(1, color=_GREY, linewidth=1, linestyle="--")
        axes.set(xlabel="expert", ylabel="load / even share", xlim=(-0.6, num_experts - 0.4))
    else:
        image = axes.imshow(load.numpy(), aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
        axes.set(xlabel="expert", ylabel="layer", yticks=range(len(load)) if len(load) <= 40 else [])
        axes.figure.colorbar(image, ax=axes, label="load / even share", extend="max")
    violation = f"MaxVio {load.max().item() - 1:.2f}"
    axes.set_title(f"{title} ({violation})" if title else violation, loc="left")
    if path is not None:
        axes.figure.figure.savefig(path)  # of a subfigure, the figure it is in
    return axes
