"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .train import History

_INK, _FAINT = "#1f2933", "#9aa5b1"
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


def _smooth(values: list[float], width: int) -> tuple[list[float], list[float]]:
    """Steps and means of consecutive groups of `width` values."""
    groups = torch.tensor(values, dtype=torch.float64).split(width)
    middles = [i * width + (len(group) + 1) / 2 for i, group in enumerate(groups)]
    return middles, [float(group.mean()) for group in groups]


def plot_loss(history: History, val_bits: float, ngrams: dict[int, float], path: Path) -> None:
    """Training and held-out bits per byte over the steps, with the n-gram models as lines to cross."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.5))
        steps = range(1, history.steps + 1)
        axes.plot(steps, history.train_bits, color=_BLUE, alpha=0.2, linewidth=0.8)
        axes.plot(*_smooth(history.train_bits, max(1, history.steps // 60)), color=_BLUE, linewidth=2, label="training")
        val_steps, val_curve = [*history.val_steps[:-1], history.steps], [*history.val_bits[:-1], val_bits]
        axes.plot(val_steps, val_curve, color=_ORANGE, linewidth=2, marker="o", markersize=4, label="held-out text")
        axes.annotate(
            f"{val_bits:.2f}", (history.steps, val_bits), (6, 0), textcoords="offset points", va="center",
            color=_ORANGE, fontweight="bold",
        )  # fmt: skip
        best = min(ngrams, key=lambda order: ngrams[order])
        for order in sorted({0, 2, best}):
            axes.axhline(ngrams[order], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            name = f"order {order}" + (", the best by counting" if order == best else "")
            axes.annotate(
                f"{name}: {ngrams[order]:.2f}", (1, ngrams[order]), (-4, 3), textcoords="offset points",
                xycoords=("axes fraction", "data"), ha="right", fontsize=8.5, color="#52606d",
            )  # fmt: skip
        axes.set(xlabel="training step", ylabel="bits per byte", title="Loss, against byte n-gram models")
        axes.set_xlim(0, history.steps * 1.06)
        axes.set_ylim(bottom=0, top=max(8.2, max(history.train_bits) * 1.02))
        axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.98), ncols=2)
        figure.savefig(path)
        plt.close(figure)


def plot_load(history: History, path: Path, columns: int = 120) -> None:
    """For each MoE layer the load of every expert over time, as a multiple of its fair share, and MaxVio below."""
    loads = torch.stack(history.loads).double()  # [steps, layers, experts]
    width = max(1, -(-history.steps // columns))
    grouped = torch.stack([group.sum(0) for group in loads.split(width)])
    share = grouped / grouped.mean(-1, keepdim=True)
    num_layers, num_experts = loads.shape[1:]
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
        middles = [min((i + 0.5) * width, history.steps) for i in range(len(share))]
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
