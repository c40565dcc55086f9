"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .train import History

_INK, _GREY, _FAINT = "#1f2933", "#52606d", "#9aa5b1"
_BLUE, _ORANGE, _GREEN = "#2b6cb0", "#dd6b20", "#2f855a"
_STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def _groups(values: torch.Tensor, most: int) -> tuple[list[float], torch.Tensor]:
    """At most `most` consecutive groups of nearly equal length along dim 0: their middle steps and their means."""
    groups = values.double().tensor_split(min(most, len(values)))
    ends = torch.tensor([len(group) for group in groups]).cumsum(0).tolist()
    middles = [end - len(group) / 2 for end, group in zip(ends, groups, strict=True)]
    return middles, torch.stack([group.mean(0) for group in groups])


def _spread(values: list[float], gap: float) -> list[float]:
    """`values` (ascending), each moved up as far as needed to stand `gap` above the one before."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    return placed


def plot_loss(history: History, val_bits: float, ngrams: dict[int, float], path: Path) -> None:
    """Training and held-out bits per byte over the steps, with the n-gram models as lines to cross."""
    best = min(ngrams, key=lambda order: ngrams[order])
    smooth_steps, smooth_bits = _groups(torch.tensor(history.train_bits), most=60)
    top = 8.2
    bottom = max(0.0, min(*smooth_bits.tolist(), *history.val_bits, val_bits, ngrams[best]) - 0.8)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.5))
        axes.plot(range(1, history.steps + 1), history.train_bits, color=_BLUE, alpha=0.2, linewidth=0.8)
        axes.plot(smooth_steps, smooth_bits.numpy(), color=_BLUE, linewidth=2, label="training text")
        axes.plot(
            history.val_steps, history.val_bits, color=_ORANGE, linewidth=2, marker="o", markersize=4,
            label="a sample of the held-out text",
        )  # fmt: skip
        axes.plot(
            history.steps, val_bits, color=_ORANGE, marker="D", markersize=8, markeredgecolor="white",
            linestyle="none", label=f"all of it: {val_bits:.2f}",
        )  # fmt: skip

        orders = sorted({0, 2, best}, key=lambda order: ngrams[order])
        heights = _spread([ngrams[order] for order in orders], gap=0.05 * (top - bottom))
        for order, height in zip(orders, heights, strict=True):
            axes.axhline(ngrams[order], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            name = f"order {order}: {ngrams[order]:.2f}" + (" (best n-gram)" if order == best else "")
            axes.text(1.01, height, name, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=_GREY)

        starts = [step for step in range(1, history.steps) if history.windows[step] != history.windows[step - 1]]
        for start in starts:
            axes.axvline(start, ymax=0.07, color=_FAINT, linewidth=1)
        for start, end in zip([0, *starts], [*starts, history.steps], strict=True):
            text = f"windows of {history.windows[start]}" if start == 0 else f"{history.windows[start]}"
            axes.text(
                (start + end) / 2, 0.02, text, transform=axes.get_xaxis_transform(), ha="center", fontsize=8.5,
                color=_GREY,
            )  # fmt: skip
        axes.set(xlabel="training step", ylabel="bits per byte", title="Loss, against byte n-gram models")
        axes.set(xlim=(0, history.steps * 1.01), ylim=(bottom, top))
        axes.legend(frameon=False, loc="upper right")
        figure.savefig(path)
        plt.close(figure)


def plot_load(history: History, path: Path, columns: int = 120) -> None:
    """For each MoE layer the load of every expert over time, as a multiple of its fair share, and MaxVio below."""
    middles, mean_load = _groups(torch.stack(history.loads), most=columns)  # [columns, layers, experts]
    share = mean_load / mean_load.mean(-1, keepdim=True)
    num_layers, num_experts = share.shape[1:]
    with plt.rc_context(_STYLE):
        figure, all_axes = plt.subplots(
            num_layers + 1, 1, figsize=(8, 1.7 * num_layers + 2.2), sharex=True, squeeze=False,
            height_ratios=[1.0] * num_layers + [0.9],
        )  # fmt: skip
        panels: list[Axes] = list(all_axes[:, 0])
        for layer, axes in enumerate(panels[:-1]):
            image = axes.imshow(
                share[:, layer].T.numpy(), aspect="auto", origin="lower", cmap="RdBu_r", vmin=0, vmax=2,
                interpolation="nearest", extent=(0, history.steps, -0.5, num_experts - 0.5),
            )  # fmt: skip
            axes.set_ylabel(f"layer {layer + 2}\nexpert")
        panels[0].set_title("Load of each expert, as a multiple of its fair share")
        figure.colorbar(image, ax=panels[:-1], extend="max", label="load / fair share", shrink=0.7)
        for layer in range(num_layers):
            color = plt.get_cmap("viridis")(0.85 * layer / max(1, num_layers - 1))
            panels[-1].plot(middles, (share[:, layer].amax(-1) - 1).numpy(), color=color, label=f"layer {layer + 2}")
        panels[-1].set(xlabel="training step", ylabel="MaxVio", xlim=(0, history.steps))
        panels[-1].set_ylim(bottom=0)
        panels[-1].legend(frameon=False, ncols=min(num_layers, 6), fontsize=8.5, loc="upper right")
        figure.savefig(path)
        plt.close(figure)


def plot_speed(speed: dict[str, dict[str, float]], path: Path) -> None:
    """Tokens per second of a whole training step: a bar is the median, the whisker slowest to fastest."""
    labels = {"moe_ext": "moe_ext", "grouped_mm": "Hugging Face\ngrouped_mm", "eager": "Hugging Face\neager"}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 0.75 * len(speed) + 1.2))
        for row, (name, rate) in enumerate(speed.items()):
            axes.barh(row, rate["median"], color=_GREEN if name == "moe_ext" else _FAINT, height=0.6)
            axes.plot([rate["min"], rate["max"]], [row, row], color=_INK, linewidth=1)
            axes.annotate(
                f"{rate['median']:,.0f}", (max(rate["max"], rate["median"]), row), (6, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
        axes.set_yticks(range(len(speed)), [labels[name] for name in speed])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="tokens per second, whole training step", title="The same model, three kinds of experts")
        figure.savefig(path)
        plt.close(figure)
