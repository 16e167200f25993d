"""Summarizes the outcomes of a load test, in numbers and in a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.plots import COLORS, add_notes, clean_axes, save_figure
from rmlora.wording import counted
from rmlora_deploy.loadtest.callers import Load
from rmlora_deploy.loadtest.load_plan import LoadPlan

__all__ = ["load_notes", "plot_load", "summarize_load"]

_PERCENTILES = (50, 90, 95, 99, 99.9)


def summarize_load(plan: LoadPlan, load: Load) -> dict[str, Any]:
    """Return throughput, latency percentiles (ms, of answered requests) and errors by status."""
    answered = [item for item in load.outcomes if item.status == 200]
    errors = Counter(str(item.status) if item.status else "no answer" for item in load.outcomes if item.status != 200)
    milliseconds = np.array([1e3 * item.seconds for item in answered])
    return {
        "url": plan.url,
        "loop": "closed" if plan.rate is None else "open",
        "clients": plan.clients if plan.rate is None else None,
        "rate": plan.rate,
        "models": len(plan.models),
        "zipf": plan.zipf,
        "rows_per_request": plan.rows,
        "seconds": load.seconds,
        "seed": plan.seed,
        "requests": len(load.outcomes),
        "answered": len(answered),
        "requests_per_second": round(len(answered) / load.seconds, 2),
        "rows_per_second": round(len(answered) * plan.rows / load.seconds, 2),
        "models_asked": len({item.model for item in load.outcomes}),
        "latency_ms": {f"p{point:g}": round(float(np.percentile(milliseconds, point)), 2) for point in _PERCENTILES}
        | {"mean": round(float(milliseconds.mean()), 2), "max": round(float(milliseconds.max()), 2)}
        if answered
        else None,
        "errors": dict(errors),
        "not_sent": load.not_sent,
        "retried": sum(item.retries > 0 for item in load.outcomes),
        "retried_answered": sum(item.retries > 0 and item.status == 200 for item in load.outcomes),
        "checked": plan.reference is not None,
        "wrong": sum(item.wrong for item in load.outcomes) if plan.reference is not None else None,
    }


def load_notes(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for everything that speaks against a server, or against the figures of its load test.

    Args:
        result: of :func:`summarize_load`.
    """
    failed = sum(result["errors"].values())
    found = {
        f"Warning: {counted(result['wrong'] or 0, 'answer')} unlike the reference.": result["wrong"],
        f"Warning: {failed:,} of {counted(result['requests'], 'request')} not answered.": failed,
        f"{counted(result['retried'] or 0, 'request')} sent again after a broken connection.": result["retried"],
        f"{counted(result['not_sent'] or 0, 'request')} not sent, because 2,000 were in progress.": result["not_sent"],
    }
    return [sentence for sentence, count in found.items() if count]


def plot_load(plan: LoadPlan, load: Load, path: Path) -> None:
    """Plot every request's latency over time, and the distribution of latencies, to ``path``; errors as ``save_figure``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    answered = [item for item in load.outcomes if item.status == 200]
    failed = [item for item in load.outcomes if item.status != 200]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    left.plot([o.due for o in answered], [1e3 * o.seconds for o in answered], ".", markersize=2, color=COLORS[0])
    if failed:
        left.plot([o.due for o in failed], [1e3 * o.seconds for o in failed], "x", color=COLORS[4], label="errors")
        left.legend(frameon=False)
    left.set(xlabel="seconds", ylabel="latency, ms", yscale="log", title="every request")
    ordered = np.sort([1e3 * o.seconds for o in answered])
    right.plot(ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)), color=COLORS[0])
    right.set(xlabel="latency, ms", ylabel="share of requests", xscale="log", ylim=(0, 1.02), title="distribution")
    for axes, axis in ((left, left.yaxis), (right, right.xaxis)):
        clean_axes(axes, grid="y")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    loop = counted(plan.clients, "client") if plan.rate is None else f"{plan.rate:g} requests/s sent"
    figure.suptitle(
        f"{counted(len(plan.models), 'model')}, {loop}: {len(answered) / load.seconds:,.0f} requests/s answered"
    )
    add_notes(figure, load_notes(summarize_load(plan, load)))
    save_figure(figure, path)
