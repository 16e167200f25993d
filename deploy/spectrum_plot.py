"""A picture of singular values: one faint line per module, the median bold, adapters side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmlora.errors import require
from rmlora.spectrum import AdapterSpectrum
from rmlora.storage import atomic_file

__all__ = ["plot_spectra"]

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")


def plot_spectra(spectra: Mapping[str, AdapterSpectrum], path: Path) -> None:
    """Write singular values, relative to each module's largest, and effective ranks as a PNG.

    Args:
        spectra: name → spectrum, in the order of the legend.
        path: file to write.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    require("matplotlib", "serve")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2), layout="constrained")
    for number, (name, spectrum) in enumerate(spectra.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        curves = [s.singular_values / s.singular_values[0] for s in spectrum.modules.values() if s.numerical_rank]
        for curve in curves:
            left.plot(np.arange(1, len(curve) + 1), curve, color=colour, alpha=0.12, linewidth=1)
        if curves:
            width = max(len(curve) for curve in curves)
            padded = np.array([np.pad(curve, (0, width - len(curve)), constant_values=np.nan) for curve in curves])
            left.plot(
                np.arange(1, width + 1),
                np.nanmedian(padded, axis=0),
                color=colour,
                linewidth=2.5,
                marker="o",
                label=name,
            )
    left.set(xlabel="direction", ylabel="singular value / largest", ylim=(0, 1.03))
    left.set_title("Singular values of every module's update, median bold", fontsize=10, loc="left")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    ranks = [[s.effective_rank for s in spectrum.modules.values()] for spectrum in spectra.values()]
    parts = right.boxplot(ranks, tick_labels=list(spectra), patch_artist=True, medianprops={"color": "#111827"})
    for number, box in enumerate(parts["boxes"]):
        box.set(facecolor=_COLOURS[number % len(_COLOURS)], alpha=0.6)
    right.set_ylabel("effective rank")
    right.set_title("Intrinsic dimension over the modules", fontsize=10, loc="left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)
