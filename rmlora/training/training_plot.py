"""Plotting a training run: loss, metric, learning rate and penalty over its steps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import require
from rmlora.plots import COLORS, add_notes, clean_axes, save_figure
from rmlora.training.result import metric_name, metrics_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_training"]


def plot_training(
    log_history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    kept_step: int | None,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Plot the history of a run.

    Args:
        log_history: entries of the trainer's state, of all parts of a resumed run.
        path: image to write; its suffix decides the format.
        kept_step: step of the packaged checkpoint, marked by a line.
        title: of the plot.
        notes: warnings, written under the plots.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the image cannot be written.
    """
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), layout="constrained")
    (loss, metric), (rate, penalty) = figure.subplots(2, 2)
    measured = dict.fromkeys(name for entry in log_history for name in metrics_in(entry) if name != "loss")
    name = "squared error" if "mse" in measured else "cross entropy"
    _curves(loss, log_history, {"loss": "training", "eval_loss": "validation"}, f"Loss ({name})")
    # errors are as large as the targets: they would flatten the curves of what ends at 1
    shown = [name for name in measured if name not in ("mse", "mae")]
    _curves(metric, log_history, {f"eval_{n}": metric_name(n) for n in shown}, "Validation metric")
    if "perplexity" not in shown:
        lowest = min((entry[f"eval_{n}"] for entry in log_history for n in shown if f"eval_{n}" in entry), default=0.0)
        metric.set_ylim(min(0.0, lowest) - 0.03, 1.03)
    _curves(rate, log_history, {"learning_rate": ""}, "Learning rate")
    _curves(penalty, log_history, {"orth_penalty": ""}, "Orthogonality penalty, not weighted")
    for axes in (loss, metric, rate, penalty):
        clean_axes(axes, grid="y")
        axes.set_xlabel("optimizer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if kept_step is not None:
            axes.axvline(kept_step, color="#374151", linewidth=1, linestyle=":")
    if kept_step is not None:
        metric.annotate(
            " kept", (kept_step, 0.02), xycoords=("data", "axes fraction"), fontsize=9, ha="right", rotation=90
        )
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontweight="bold")
    add_notes(figure, notes)
    save_figure(figure, path)


def _curves(axes: Axes, log_history: Sequence[Mapping[str, Any]], series: Mapping[str, str], title: str) -> None:
    """Draw one line per key of ``series`` that the history has."""
    drawn = False
    for number, (key, label) in enumerate(series.items()):
        points = [(entry["step"], float(entry[key])) for entry in log_history if key in entry]
        if points:
            drawn = True
            axes.plot(*zip(*points, strict=True), color=COLORS[number], marker="o", markersize=3.5, label=label)
    axes.set_title(title, loc="left", fontsize=11)
    if not drawn:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="#6b7280")
    elif any(series.values()):
        axes.legend(frameon=False)
