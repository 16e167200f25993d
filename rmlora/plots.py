"""What all plots share: file formats, colors, clean axes, and atomic writes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmlora.errors import ConfigError, require
from rmlora.storage import atomic_file, check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "add_notes", "check_plot_path", "clean_axes", "save_figure"]

COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2")
"""Colors of the first, second, … thing compared; they differ in lightness too."""

_FORMATS = (".png", ".svg", ".pdf")


def check_plot_path(path: Path) -> None:
    """Check that a plot can be drawn and written, before the work for it is done.

    Raises:
        ConfigError: the suffix is not that of a picture format.
        OutputError: the file cannot be written.
        DependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"'{path}' does not name a picture: end the name given to --plot in {', '.join(_FORMATS)}.")
    require("matplotlib", "serve")
    check_writable(path)


def clean_axes(axes: Axes, *, grid: str) -> None:
    """Remove the top and right edges of the frame, and draw faint grid lines on the axis ``grid`` (``x`` or ``y``)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if grid == "x" else "y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """Write sentences, such as warnings, below the axes of a figure: a picture is passed on without its console."""
    width = int(11.5 * figure.get_figwidth())  # characters of this size that fit
    lines = [line for note in notes for line in textwrap.wrap(note, width)]
    if lines:
        figure.text(0.01, -0.015, "\n".join(lines), fontsize=9, color="#b45309", ha="left", va="top")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to ``path``, atomically, in the format of its suffix.

    The picture is as large as what is drawn, so no title, label or note is cut off.
    """
    with atomic_file(path) as temporary:
        kind = path.suffix.removeprefix(".").lower()
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", pad_inches=0.12)
