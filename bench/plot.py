"""A picture of a result file: one bar for each cell, moe_ext's speed over the best other contender."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.report import title
from bench.results import Cell, Comparison, Report

_COLOURS: Final = {
    ("bf16", "fwd"): "#2a6fbb",
    ("bf16", "fwdbwd"): "#123b6d",
    ("fp32", "fwd"): "#e39a3b",
    ("fp32", "fwdbwd"): "#a85f11",
}
# Bars on weights that are not those of the model.
_HATCHES: Final = {"plain": "", "packed": "//", "int8": "xx"}
_PASS: Final = {"fwd": "forward", "fwdbwd": "forward + backward"}


def draw(report: Report, path: Path) -> None:
    """Write a PNG to `path`. Raises ValueError where no cell has both moe_ext and another contender."""
    draw_bars([(cell, compared) for cell in report.cells for compared in cell.comparisons], title(report), path)


def draw_bars(given: Iterable[tuple[Cell, Comparison]], heading: str, path: Path) -> None:
    """The same of chosen cells."""
    bars = [(cell, compared) for cell, compared in given if compared.ratio]
    if not bars:
        raise ValueError("nothing to plot: no cell has a time of moe_ext and of another contender")
    bars.sort(key=lambda bar: list(_COLOURS).index((bar[0].dtype, bar[0].mode)))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.42 * len(bars)), layout="constrained")
    for position, (cell, compared) in enumerate(bars):
        _draw_bar(axes, position, cell, compared)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks(range(len(bars)), [_label(cell, compared) for cell, compared in bars])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.05 * max(_right_end(cell, compared) for cell, compared in bars))
    axes.text(1.02, 1, "best other", transform=axes.transAxes, va="bottom", color="#555555", fontsize=8, weight="bold")
    axes.set_xlabel("speed of moe_ext over the best other contender (times of the same round; whiskers: quartiles)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    shown = dict.fromkeys((cell.dtype, cell.mode) for cell, _ in bars)
    handles: list[Patch | Line2D] = [Patch(color=_COLOURS[key], label=f"{key[0]} {_PASS[key[1]]}") for key in shown]
    hatches = dict.fromkeys(compared.weights for _, compared in bars if compared.weights != "plain")
    handles += [Patch(facecolor="#dddddd", hatch=_HATCHES[weights], label=f"{weights} weights") for weights in hatches]
    handles.append(
        Line2D([], [], marker="o", linestyle="", color="#999999", markersize=4, label="over another contender")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(heading, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _label(cell: Cell, compared: Comparison) -> str:
    weights = "" if compared.weights == "plain" else f"  {compared.weights}"
    return f"{cell.shape['name']}  {cell.dtype}{weights}"


def _others(cell: Cell, compared: Comparison) -> list[float]:
    """Speed over the contenders behind the best other one. One several times slower would squeeze all bars; its
    number is in the table."""
    behind = [o for o in cell.timed if not o.ours and o.weights == compared.weights and o is not compared.best_other]
    ratios = [ratio.median for o in behind if (ratio := cell.ratio_to(o))]
    return [ratio for ratio in ratios if compared.ratio and ratio <= 2.5 * compared.ratio.median]


def _right_end(cell: Cell, compared: Comparison) -> float:
    return max(compared.ratio.quartile_3 if compared.ratio else 0.0, *_others(cell, compared), 1.0)


def _draw_bar(axes: plt.Axes, position: int, cell: Cell, compared: Comparison) -> None:
    ratio, best = compared.ratio, compared.best_other
    if ratio is None or best is None:
        return
    axes.barh(
        position,
        ratio.median,
        height=0.72,
        color=_COLOURS[cell.dtype, cell.mode],
        hatch=_HATCHES[compared.weights],
        edgecolor="#ffffff55",
        xerr=[[ratio.median - ratio.quartile_1], [ratio.quartile_3 - ratio.median]],
        error_kw={"ecolor": "#222222", "elinewidth": 1, "capsize": 2},
    )
    others = _others(cell, compared)
    axes.plot(others, [position] * len(others), "o", color="#999999", markersize=4, zorder=3)
    axes.annotate(
        f"{ratio.median:.2f}×",
        (0, position),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color="white",
        weight="bold",
        fontsize=9,
    )
    axes.text(
        1.02, position, best.contender, transform=axes.get_yaxis_transform(), va="center", color="#555555", fontsize=8
    )
