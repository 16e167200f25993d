"""The plots of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.comparison import Comparison
from benchmarks.quality.methods import METHODS
from benchmarks.quality.study import REPORTED
from rmlora.plots import COLORS, clean_axes, save_figure

__all__ = ["draw_differences"]


def draw_differences(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the difference and its interval for every cell, one panel for each method compared with."""
    from matplotlib.figure import Figure

    cells = sorted(
        {(cell.task, cell.size) for item in comparisons for cell in item.cells},
        key=lambda cell: (list(REPORTED).index(cell[0]), cell[1]),
        reverse=True,
    )
    figure = Figure(figsize=(4.4 * len(comparisons) + 1.6, 0.28 * len(cells) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    for axes, item, color in zip(panels, comparisons, COLORS, strict=False):
        for cell in item.cells:
            row = cells.index((cell.task, cell.size))
            width = cell.half_width if cell.half_width != float("inf") else 0
            axes.errorbar(cell.mean, row, xerr=width, fmt="o", color=color, markersize=5, elinewidth=1.4)
        axes.axvline(0, color="#6b7280", linewidth=1)
        axes.axvspan(item.mean - item.half_width, item.mean + item.half_width, color=color, alpha=0.12, linewidth=0)
        axes.set_title(f"{METHODS[item.method].title} minus {METHODS[item.against].title}", fontsize=10)
        axes.set_xlabel("percentage points of test accuracy (shaded: mean over cells)", fontsize=8)
        axes.set_yticks(range(len(cells)), [f"{REPORTED[task].title}, {size:,}" for task, size in cells], fontsize=8)
        clean_axes(axes, grid="x")
    save_figure(figure, path)
