"""A roofline of a result file: FLOP/s of every contender against the FLOPs a byte of its cell, under the machine's
roofs. A panel for each dtype and pass; contenders of a cell stand above each other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from bench.contender import WEIGHTS
from bench.report import PASSES, title
from bench.results import Cell, Outcome, Report

_OURS: Final = {"plain": "#123b6d", "packed": "#2a6fbb", "int8": "#6fb1e8"}
_OTHERS: Final = (
    "#e39a3b",
    "#3d8f5f",
    "#a8324a",
    "#6f4fa0",
    "#8a6d3b",
    "#b3a125",
    "#d072a8",
    "#5aa7a7",
    "#777777",
    "#444444",
)
_MARKERS: Final = {"plain": "o", "packed": "s", "int8": "^"}


def _intensity(cell: Cell, outcome: Outcome) -> float:
    return cell.flops / cell.compulsory_bytes[outcome.weights]


def _roofs(axes: plt.Axes, limits: dict[str, Any], formats: list[str], low: float, high: float) -> None:
    bandwidth = limits["bytes_per_second"]
    knee = max(limits["flops_per_second"][name] for name in formats) / bandwidth
    axes.plot([low, knee], [low * bandwidth, knee * bandwidth], color="#222222", linewidth=1.2)
    middle = math.sqrt(low * knee)
    axes.annotate(
        f"{bandwidth / 1e9:.1f} GB/s", (middle, middle * bandwidth), xytext=(-4, 4), textcoords="offset points",
        ha="right", fontsize=7,
    )  # fmt: skip
    for name in formats:
        rate = limits["flops_per_second"][name]
        axes.plot(
            [rate / bandwidth, high],
            [rate, rate],
            color="#222222",
            linewidth=1.2,
            linestyle="-" if name != "int8" else ":",
        )
        text = f"{name} {rate / 1e9:.0f} GFLOP/s"
        axes.annotate(text, (high, rate), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=7)


def _draw_panel(axes: plt.Axes, cells: list[Cell], limits: dict[str, Any], colours: dict[str, str]) -> None:
    points = [(cell, outcome) for cell in cells for outcome in cell.timed]
    places = [_intensity(cell, outcome) for cell, outcome in points]
    used = {cells[0].dtype, *("int8" for _, outcome in points if outcome.weights == "int8")}
    formats = [name for name in limits["flops_per_second"] if name in used]
    knees = [limits["flops_per_second"][name] / limits["bytes_per_second"] for name in formats]
    low, high = min(places + knees) / 2, max(places + knees) * 4
    _roofs(axes, limits, formats, low, high)
    for (cell, outcome), place in zip(points, places, strict=True):
        axes.plot(
            place,
            cell.flops / outcome.spread.median,
            _MARKERS[outcome.weights],
            color=colours[outcome.contender],
            markersize=7 if outcome.ours else 5,
            alpha=1.0 if outcome.ours else 0.8,
            zorder=4 if outcome.ours else 3,
        )
    # Cells may lie close together: their names alternate between two heights.
    for index, cell in enumerate(sorted(cells, key=lambda cell: cell.flops / cell.compulsory_bytes["plain"])):
        place = cell.flops / cell.compulsory_bytes["plain"]
        axes.axvline(place, color="#eeeeee", linewidth=0.8, zorder=0)
        axes.annotate(
            cell.shape["name"], (place, 0.01 + 0.035 * (index % 3)), xycoords=axes.get_xaxis_transform(), ha="center",
            fontsize=7, color="#555555",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    bottom = min(cell.flops / outcome.spread.median for cell, outcome in points)
    axes.set_ylim(bottom=10 ** (math.log10(bottom) - 0.6))
    axes.set_title(f"{cells[0].dtype} {PASSES[cells[0].mode]}", fontsize=10)
    axes.set_xlabel("FLOP / compulsory byte", fontsize=8)
    axes.set_ylabel("FLOP/s", fontsize=8)
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def draw(report: Report, path: Path) -> None:
    """Write a PNG to `path`. Raises ValueError where nobody was timed."""
    cells = [cell for cell in report.cells if cell.timed]
    if not cells:
        raise ValueError("nothing to plot: nobody was timed")
    panels = list(dict.fromkeys((cell.dtype, cell.mode) for cell in cells))
    timed = {outcome.contender: outcome for cell in cells for outcome in cell.timed}
    others = (name for name, outcome in timed.items() if not outcome.ours)
    colours = {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)}
    colours |= {name: _OURS[outcome.weights] for name, outcome in timed.items() if outcome.ours}

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 5.5 * columns, 1.2 + 4.2 * rows), squeeze=False, layout="constrained"
    )
    for place, (dtype, mode) in zip(axes.flat, panels, strict=False):
        own = [cell for cell in cells if (cell.dtype, cell.mode) == (dtype, mode)]
        _draw_panel(place, own, report.limits, colours)
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    order = sorted(timed, key=lambda name: (not timed[name].ours, list(WEIGHTS).index(timed[name].weights)))
    handles = [
        Line2D([], [], marker=_MARKERS[timed[name].weights], linestyle="", color=colours[name], label=name)
        for name in order
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(title(report), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
