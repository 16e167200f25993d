"""Plotting what a graph takes for what."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rmlora.errors import require
from rmlora.plots import save_figure
from rmlora_deploy.inspection.mistakes_section import Confusion, labels_in

__all__ = ["MOST_LABELS", "plot_confusion"]

MOST_LABELS = 40
"""Labels up to which the names on a plot can be read."""
_NUMBERED = 20
"""Labels up to which there is room for counts in the cells."""


def plot_confusion(confusion: Confusion, path: Path) -> None:
    """Plot a row for every right label, a column for every label that was given, and the shares of each row as colors.

    Args:
        confusion: right label → label that was given → rows; at most :data:`MOST_LABELS` labels.
        path: image to write; its suffix decides the format.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the image cannot be written.
    """
    require("matplotlib", "serve")
    from matplotlib.figure import Figure

    labels = labels_in(confusion)
    counts = np.array([[confusion.get(right, {}).get(given, 0) for given in labels] for right in labels])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.8 + 0.42 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # cells, where imshow would make a picture that a page has to load
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    centers = np.arange(len(labels)) + 0.5
    names = [label.replace("$", r"\$") for label in labels]  # matplotlib would read formulas between dollars
    axes.set_xticks(centers, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(centers, names)
    axes.set_xlabel("label that was given")
    axes.set_ylabel("right label")
    axes.spines[:].set_visible(False)
    if len(labels) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "#1f2937"
                axes.text(column + 0.5, row + 0.5, f"{count}", ha="center", va="center", fontsize=8, color=color)
    save_figure(figure, path)
