"""What the pictures of this project share: formats, colors, and drawing without a display."""

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
"""In the order of the things compared; they differ in lightness too."""

_FORMATS = (".png", ".svg", ".pdf")


def check_plot_path(path: Path) -> None:
    """Refuse a picture that could not be drawn or written, before the work for it is done.

    Raises:
        ConfigError: the suffix names no picture format.
        OutputError: the place is not writable.
        DependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"'{path}' names no picture: end the name given to --plot in {', '.join(_FORMATS)}.")
    require("matplotlib", "serve")
    check_writable(path)


def clean_axes(axes: Axes, *, grid: str) -> None:
    """Leave of the frame only what is read, and draw faint grid lines along ``grid`` (``x`` or ``y``)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if grid == "x" else "y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".").lower(), dpi=150)
