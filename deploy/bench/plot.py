"""A picture of a bench: one panel per size, one bar per contestant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmlora.errors import require
from rmlora.storage import atomic_file

__all__ = ["plot_bench"]

_COLOURS = {"onnx": "#2563eb", "torch": "#9ca3af"}


def plot_bench(result: dict[str, Any], path: Path) -> None:
    """Write the median latencies with the range over rounds as a PNG.

    Args:
        result: what :func:`deploy.bench.run.run_bench` returned.
        path: file to write.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    require("matplotlib", "serve")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in result["rows"] if "p50_ms" in row]
    sizes = list(dict.fromkeys((row["rows"], row["tokens"]) for row in measured))
    columns = min(len(sizes), 2)
    lines = -(-len(sizes) // columns)
    height = 1.1 + lines * (0.9 + 0.42 * len(measured) / len(sizes))
    figure, axes = plt.subplots(lines, columns, figsize=(10, height), squeeze=False, layout="constrained")
    for axis, size in zip(axes.flat, sizes, strict=False):
        rows = [row for row in measured if (row["rows"], row["tokens"]) == size][::-1]
        names = [f"{row['name']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}" for row in rows]
        values = [row["p50_ms"] for row in rows]
        errors = [
            [row["p50_ms"] - row["p50_ms_range"][0] for row in rows],
            [row["p50_ms_range"][1] - row["p50_ms"] for row in rows],
        ]
        bars = axis.barh(names, values, xerr=errors, color=[_COLOURS[row["engine"]] for row in rows], ecolor="#374151")
        labels = [f"{row['p50_ms']:.1f} ms · {row['rows_per_second']:,.0f} rows/s" for row in rows]
        axis.bar_label(bars, labels=labels, padding=6, fontsize=8)
        axis.set_xlim(0, 1.5 * max(values))
        tokens = f" × {size[1]} tokens" if size[1] else ""
        axis.set_title(f"{size[0]} row{'s' if size[0] > 1 else ''}{tokens}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in list(axes.flat)[len(sizes) :]:
        axis.set_visible(False)
    bundle, environment = result["bundle"], result["environment"]
    figure.suptitle(
        f"{bundle['path']} ({bundle['precision']}): median latency, range over {result['settings']['rounds']} rounds\n"
        f"{environment['processor']}, {environment['cores']} cores",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)
