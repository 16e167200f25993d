"""Plotting the intrinsic dimension of one or several adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmlora.errors import require
from rmlora.plots import COLORS, clean_axes, save_figure
from rmlora.spectrum import AdapterSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_spectra"]

_MEASURES = (("numerical_rank", "numerical"), ("stable_rank", "stable"), ("effective_rank", "effective"))


def plot_spectra(spectra: Mapping[str, AdapterSpectrum], path: Path) -> None:
    """Plot the singular values of every adapter and its three measures of rank.

    Args:
        spectra: name in the legend → spectrum; the first is the one inspected.
        path: image to write; its suffix decides the format.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the image cannot be written.
    """
    require("matplotlib", "serve")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for number, (name, spectrum) in enumerate(spectra.items()):
        _singular_values(left, name, spectrum, COLORS[number % len(COLORS)])
    _measures(right, spectra)
    left.set_title("Singular values of the updates  s·BA", loc="left", fontweight="bold")
    left.set_xlabel("index, largest first")
    left.set_ylabel("singular value")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.xaxis.get_major_locator().set_params(integer=True)
    legend = left.legend(loc="lower left", frameon=False, title="thin: one module each · thick: geometric mean")
    legend._legend_box.align = "left"  # matplotlib has no public setting for the title's alignment
    right.set_title("Dimension of an update (mean)", loc="left", fontweight="bold")
    for axes in (left, right):
        clean_axes(axes, grid="y")
    save_figure(figure, path)


def _singular_values(axes: Axes, name: str, spectrum: AdapterSpectrum, color: str) -> None:
    """Draw a thin line per module, and a thick one for the geometric mean over the modules with that many values."""
    curves = [item.singular_values[: item.numerical_rank] for item in spectrum.modules.values() if item.numerical_rank]
    faint = min(0.5, 6 / max(len(curves), 1))
    for values in curves:
        axes.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=0.8, alpha=faint)
    longest = max((len(values) for values in curves), default=0)
    mean = [np.exp(np.mean([np.log(v[i]) for v in curves if len(v) > i])) for i in range(longest)]
    axes.plot(np.arange(1, longest + 1), mean, color=color, linewidth=2.6, marker="o", markersize=4.5, label=name)


def _measures(axes: Axes, spectra: Mapping[str, AdapterSpectrum]) -> None:
    """Draw a bar per adapter and measure, with whiskers from the smallest to the largest module."""
    width = 0.8 / len(spectra)
    for number, (name, spectrum) in enumerate(spectra.items()):
        for group, (measure, _) in enumerate(_MEASURES):
            values = np.array([getattr(item, measure) for item in spectrum.modules.values()])
            mean = values.mean()
            x = group + (number - (len(spectra) - 1) / 2) * width
            axes.bar(
                x,
                mean,
                width * 0.9,
                color=COLORS[number % len(COLORS)],
                label=name if group == 0 else None,
                yerr=[[mean - values.min()], [values.max() - mean]],
                error_kw={"ecolor": "#374151", "elinewidth": 1, "capsize": 3},
            )
            axes.annotate(
                f"{mean:.3g}",
                (x, values.max()),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    axes.set_xticks(range(len(_MEASURES)), [f"{name}\nrank" for _, name in _MEASURES])
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
