"""What all plots share: file formats, colors, clean axes, and atomic writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rmlora.errors import ConfigError, require
from rmlora.storage import atomic_file, check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "check_plot_path", "clean_axes", "save_figure"]

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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to ``path``, atomically, in the format of its suffix."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".").lower(), dpi=150)
