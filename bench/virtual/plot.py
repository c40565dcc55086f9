"""A picture of a result file of `virtual`: for each chip, what the yardstick asks for over what moe_ext does."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from bench.virtual.report import MEASURES, layer_row, title
from bench.virtual.results import Report

_COLOURS: Final = ("#123b6d", "#2a6fbb", "#8fbce6", "#e39a3b")


def draw(report: Report, path: Path) -> None:
    """Write a PNG to `path`. Raises ValueError where no cell has both contenders."""
    cells = [cell for cell in report.cells if cell.of(ours=True) and cell.of(ours=False)]
    if not cells:
        raise ValueError("nothing to plot: no cell has the counters of both moe_ext and the yardstick")
    chips = list(dict.fromkeys(cell.chip.name for cell in cells))
    layers = list(dict.fromkeys((cell.shape["name"], cell.phase) for cell in cells))
    figure, panels = plt.subplots(
        1, len(chips), figsize=(1 + 3.6 * len(chips), 1.4 + 0.6 * len(layers)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    height = 0.8 / len(MEASURES)
    for axes, chip in zip(panels[0], chips, strict=True):
        rows = {(cell.shape["name"], cell.phase): layer_row(cell) for cell in cells if cell.chip.name == chip}
        for index, ((name, measure), colour) in enumerate(zip(MEASURES.items(), _COLOURS, strict=True)):
            ratios = [measure(rows[layer]) or 0.0 if layer in rows else 0.0 for layer in layers]
            places = [position + (index - (len(MEASURES) - 1) / 2) * height for position in range(len(layers))]
            bars = axes.barh(places, ratios, height=height, color=colour, label=name)
            axes.bar_label(bars, [f"{ratio:.2f}" if ratio else "" for ratio in ratios], padding=2, fontsize=7)
        axes.axvline(1, color="#444444", linewidth=1, zorder=0.6)
        axes.set_title(chip, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
    panels[0][0].set_yticks(range(len(layers)), [f"{name} {phase}" for name, phase in layers])
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(MEASURES), frameon=False, fontsize=9)
    what = "Triton yardstick / moe_ext: above 1, moe_ext asks for less (counters, no time)"
    figure.suptitle(f"{title(report)}\n{what}", fontsize=10)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
