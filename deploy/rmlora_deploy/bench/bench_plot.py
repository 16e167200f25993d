"""A picture of a bench result: one column per batch shape, latency above throughput, one bar per contestant."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import require
from rmlora.plots import add_notes, clean_axes, save_figure
from rmlora.wording import counted
from rmlora_deploy.bench.bench_plan import BatchShape
from rmlora_deploy.bench.bench_warnings import bench_warnings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bench"]

_COLORS = {"onnx": ("#93b4f8", "#2563eb"), "torch": ("#d1d5db", "#6b7280"), "torch-compile": ("#fcd29a", "#d97706")}
"""Engine → pale color, and the full color for the largest number of threads."""


def plot_bench(result: Mapping[str, Any], path: Path) -> None:
    """Draw median latency with its range over the rounds and the 99th percentile, and throughput.

    Args:
        result: what :func:`rmlora_deploy.bench.rounds.run_bench` returned.
        path: picture to write; its suffix sets the format.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    require("matplotlib", "serve")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    by_shape: dict[BatchShape, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        by_shape.setdefault(BatchShape(row["rows"], row["tokens"]), []).append(row)
    bars = max(map(len, by_shape.values()))
    figure = Figure(figsize=(2.4 + 2.7 * len(by_shape), 1.9 + 2 * (0.5 + 0.34 * bars)), layout="constrained")
    grid = figure.subplots(2, len(by_shape), squeeze=False)
    most = max(row["threads"] for row in result["rows"])
    for column, (shape, rows) in enumerate(by_shape.items()):
        _panel(grid[0][column], rows, "p50_ms", most, show_names=column == 0)
        _panel(grid[1][column], rows, "rows_per_second", most, show_names=column == 0)
        grid[0][column].set_title(_title(shape), fontsize=10, fontweight="bold", loc="left")
        grid[0][column].set_xlabel("latency, ms", fontsize=9)
        grid[1][column].set_xlabel("rows per second", fontsize=9)
    bundle, machine = result["bundle"], result["environment"]
    title = f"{bundle['name']} ({bundle['precision']}) on {machine['processor']}, {counted(machine['cores'], 'core')}"
    figure.suptitle(
        "\n".join(textwrap.wrap(title, int(9 * figure.get_figwidth()))),
        fontsize=12,
        x=0.01,
        ha="left",
    )
    signs = [
        Line2D(
            [], [], color="#111827", linewidth=1.4, label=f"range of {result['settings']['rounds']} rounds' medians"
        ),
        Line2D([], [], color="#111827", marker="|", linestyle="", markersize=9, label="99th percentile"),
    ]
    figure.legend(handles=signs, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    add_notes(figure, bench_warnings(result))
    save_figure(figure, path)


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, most: int, *, show_names: bool) -> None:
    heights = list(range(len(rows)))[::-1]
    values = [row[key] for row in rows]
    colors = [_COLORS[row["engine"]][row["threads"] == most] for row in rows]
    axes.barh(heights, values, color=colors, height=0.74)
    ends = values
    if key == "p50_ms":
        for height, row in zip(heights, rows, strict=True):
            axes.plot(row["p50_ms_range"], [height, height], color="#111827", linewidth=1.4)
            axes.plot(row["p99_ms"], height, marker="|", color="#111827", markersize=9)
        ends = [max(row["p99_ms"], row["p50_ms_range"][1]) for row in rows]
    for height, value, end in zip(heights, values, ends, strict=True):
        axes.annotate(
            f"{value:.1f}" if value < 100 else f"{value:,.0f}",
            (end, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    names = [f"{row['name']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}" for row in rows]
    axes.set_yticks(heights, names if show_names else [""] * len(names), fontsize=9)
    axes.set_xlim(0, 1.28 * max(ends))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    clean_axes(axes, grid="x")


def _title(shape: BatchShape) -> str:
    rows = f"{shape.rows} row{'s' if shape.rows > 1 else ''}"
    return rows if shape.tokens is None else f"{rows} × {counted(shape.tokens, 'token')}"
