"""The figures of a report, from the runs of all rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from rmlora_deploy.bench.bench_plan import BatchShape, Contestant
from rmlora_deploy.runtime.providers import get_provider

__all__ = ["summarize"]

Run = dict[str, Any]
Row = dict[str, Any]


def summarize(
    everyone: Sequence[Contestant],
    shapes: Sequence[BatchShape],
    runs: Mapping[Contestant, Sequence[Run]],
    failures: Mapping[Contestant, str],
) -> dict[str, list[Row]]:
    """Return ``contestants`` and ``rows``: medians over the rounds, with the range of the rounds' medians.

    A ratio is the median time of the fastest PyTorch, on the same device with the same threads and batch shape, over
    that of ONNX Runtime. It is taken within each round before the median over the rounds, so that a disturbance of a
    whole round cancels out.

    Args:
        everyone: contestants in the order of the report.
        shapes: batches in the order of each run's figures.
        runs: what each contestant's workers returned, one result per round.
        failures: why a contestant could not be measured.
    """
    measured = [item for item in everyone if item not in failures]
    rows = [
        _row(item, shape, [run["figures"][number] for run in runs[item]])
        for item in measured
        for number, shape in enumerate(shapes)
    ]
    for row in rows:
        _add_comparison(row, rows)
    reference = next((runs[item][0]["logits"] for item in measured if item.engine == "torch"), None)
    return {
        "contestants": [
            {**_head(item), "not_measured": failures[item]}
            if item in failures
            else {**_head(item), **_whole(runs[item], reference)}
            for item in everyone
        ],
        "rows": rows,
    }


def _head(item: Contestant) -> Row:
    return {
        "engine": item.engine,
        "provider": item.provider,
        "threads": item.threads,
        "name": item.name,
        "use": item.use,
    }


def _row(item: Contestant, shape: BatchShape, rounds: Sequence[Row]) -> Row:
    def over_rounds(key: str) -> float:
        return float(median(one[key] for one in rounds))

    medians = [one["p50_ms"] for one in rounds]
    return {
        **_head(item),
        "rows": shape.rows,
        "tokens": shape.tokens,
        **{key: over_rounds(key) for key in ("p50_ms", "p90_ms", "p99_ms")},
        "p50_ms_range": [min(medians), max(medians)],
        "p50_ms_rounds": medians,
        "rows_per_second": over_rounds("rows_per_second"),
        "samples": sum(one["samples"] for one in rounds),
    }


def _add_comparison(row: Row, rows: Sequence[Row]) -> None:
    """Add to a row of ONNX Runtime how many times faster than PyTorch it is, and the range over the rounds."""
    device = get_provider(row["provider"]).device
    conditions = (device, row["threads"], row["rows"], row["tokens"])
    rivals = [
        other
        for other in rows
        if other["engine"] != "onnx"
        and (other["provider"], other["threads"], other["rows"], other["tokens"]) == conditions
    ]
    if row["engine"] != "onnx" or not rivals:
        return
    rival = min(rivals, key=lambda other: float(other["p50_ms"]))
    ratios = [theirs / ours for theirs, ours in zip(rival["p50_ms_rounds"], row["p50_ms_rounds"], strict=True)]
    row["speed_over_torch"] = float(median(ratios))
    row["speed_over_torch_range"] = [min(ratios), max(ratios)]
    row["compared_with"] = rival["name"]


def _whole(runs: Sequence[Run], reference: Sequence[Any] | None) -> Row:
    """Return the figures of a contestant as a whole; a small ``relative_error`` shows that it computes what PyTorch does."""
    row: Row = {key: runs[0][key] for key in ("how", "pinned")}
    for key in ("load_seconds", "loaded_mb", "peak_mb"):
        values = [run[key] for run in runs if run[key] is not None]
        row[key] = float(median(values)) if values else None
    shares = [one["others_share"] for run in runs for one in run["figures"] if one["others_share"] is not None]
    row["others_share"] = max(shares, default=None)
    if reference is not None and runs[0]["logits"] is not None:
        expected = np.array(reference)
        row["relative_error"] = float(np.abs(np.array(runs[0]["logits"]) - expected).max() / np.abs(expected).max())
    return row
