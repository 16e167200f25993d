"""Plots of the results: bars of the ratios of one table, and a line for each contestant along an axis that grows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rmlora.plots import clean_axes, save_figure

__all__ = ["plot"]

COLORS = {"ours": "#2563eb", "peer": "#9ca3af", "floor": "#d97706"}
LINES = ("-", "--", ":", "-.")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw a results file that has a measured row to ``path``."""
    rows = [row for row in result["rows"] if row.get("figures")]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = _curves(result, rows) if result["table"].get("axis") else _bars(result, rows)
    save_figure(figure, path)


def _bars(result: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Figure:
    columns = result["table"].get("judged") or result["table"]["columns"]
    figure = Figure(figsize=(2.6 + 2.3 * len(columns), 1.0 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    heights = list(range(len(rows)))[::-1]
    for axes, column in zip(panels, columns, strict=True):
        figures = [row["figures"].get(column) for row in rows]
        values = [item["median"] if item else 0.0 for item in figures]
        axes.barh(heights, values, color=[COLORS[row["kind"]] for row in rows], height=0.72)
        for height, item in zip(heights, figures, strict=True):
            if item and "range" in item:
                axes.plot(item["range"], [height, height], color="#111827", linewidth=1.2)
        axes.set_title(column, fontsize=10, loc="left")
        axes.set_yticks(heights, [row["name"] for row in rows], fontsize=8)
        axes.set_xlabel(result["table"]["unit"], fontsize=9)
        clean_axes(axes, grid="x")
    return figure


def _curves(result: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Figure:
    about = result["table"]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    seen = dict.fromkeys(COLORS, 0)
    for row in rows:
        points = [
            (_position(column), row["figures"][column]) for column in about["columns"] if column in row["figures"]
        ]
        xs, medians = [x for x, _ in points], [item["median"] for _, item in points]
        kind = row["kind"]
        style = LINES[seen[kind] % len(LINES)]
        seen[kind] += 1
        axes.plot(xs, medians, style, marker="o", markersize=3, color=COLORS[kind], label=row["name"])
        axes.fill_between(
            xs, [item["range"][0] for _, item in points], [item["range"][1] for _, item in points],
            color=COLORS[kind], alpha=0.12,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([_position(column) for column in about["columns"]], list(about["columns"]), fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(about["axis"], fontsize=9)
    axes.set_ylabel(about["unit"], fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    clean_axes(axes, grid="y")
    return figure


def _position(column: str) -> float:
    """Return the number that a column stands for: "1,000", "22 M" and "1 B" are numbers too."""
    number, _, unit = column.replace(",", "").partition(" ")
    return float(number) * {"": 1.0, "M": 1e6, "B": 1e9}[unit]
