"""From the runs of all rounds to the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from rmlora_deploy.bench.bench_plan import Contestant, Size

__all__ = ["summarize"]

Run = dict[str, Any]
Row = dict[str, Any]


def summarize(
    everyone: Sequence[Contestant],
    sizes: Sequence[Size],
    runs: Mapping[Contestant, Sequence[Run]],
    failures: Mapping[Contestant, str],
) -> dict[str, list[Row]]:
    """Return ``contestants`` and ``rows``: medians over the rounds, with the range of the rounds' medians.

    Every ratio is taken between the two runs of one round and then summarized, so what disturbs a whole round
    cancels. It is the time of the fastest PyTorch of the same device, threads and size over this one's.

    Args:
        everyone: contestants in the order of the report.
        sizes: batches in the order of the runs.
        runs: what each contestant's workers returned, round by round.
        failures: contestants that could not be measured, and why.
    """
    measured = [item for item in everyone if item not in failures]
    rows = [
        _row(item, size, [run["sizes"][number] for run in runs[item]])
        for item in measured
        for number, size in enumerate(sizes)
    ]
    for row in rows:
        _compare(row, rows)
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


def _row(item: Contestant, size: Size, rounds: Sequence[Row]) -> Row:
    def over_rounds(key: str) -> float:
        return float(median(one[key] for one in rounds))

    medians = [one["p50_ms"] for one in rounds]
    return {
        **_head(item),
        "rows": size.rows,
        "tokens": size.tokens,
        **{key: over_rounds(key) for key in ("p50_ms", "p90_ms", "p99_ms")},
        "p50_ms_range": [min(medians), max(medians)],
        "p50_ms_rounds": medians,
        "rows_per_second": over_rounds("rows_per_second"),
        "samples": sum(one["samples"] for one in rounds),
    }


def _compare(row: Row, rows: Sequence[Row]) -> None:
    """Add how many times faster than PyTorch a row of ONNX Runtime is, and the range over the rounds."""
    device = "cpu" if row["provider"] == "cpu" else "cuda"
    place = (device, row["threads"], row["rows"], row["tokens"])
    rivals = [
        other
        for other in rows
        if other["engine"] != "onnx" and (other["provider"], other["threads"], other["rows"], other["tokens"]) == place
    ]
    if row["engine"] != "onnx" or not rivals:
        return
    rival = min(rivals, key=lambda other: float(other["p50_ms"]))
    ratios = [theirs / ours for theirs, ours in zip(rival["p50_ms_rounds"], row["p50_ms_rounds"], strict=True)]
    row["speed_over_torch"] = float(median(ratios))
    row["speed_over_torch_range"] = [min(ratios), max(ratios)]
    row["compared_with"] = rival["name"]


def _whole(runs: Sequence[Run], reference: Sequence[Any] | None) -> Row:
    """What holds for a contestant at all sizes; ``relative_error`` proves that it computes the same function."""
    row: Row = {key: runs[0][key] for key in ("how", "pinned")}
    for key in ("load_seconds", "loaded_mb", "peak_mb"):
        values = [run[key] for run in runs if run[key] is not None]
        row[key] = float(median(values)) if values else None
    shares = [size["others_share"] for run in runs for size in run["sizes"] if size["others_share"] is not None]
    row["others_share"] = max(shares, default=None)
    if reference is not None and runs[0]["logits"] is not None:
        expected = np.array(reference)
        row["relative_error"] = float(np.abs(np.array(runs[0]["logits"]) - expected).max() / np.abs(expected).max())
    return row
