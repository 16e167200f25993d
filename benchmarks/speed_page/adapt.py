"""Results files of another form than the frame's (``benchmarks.contest``), as tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.contest import Contestant, Table, summarize

__all__ = ["ADAPTERS", "as_table"]

Result = Mapping[str, Any]


def as_table(name: str, result: Result) -> Result:
    """Return a results file as the page reads it; one that is a table already, or of no known form, stays as it is."""
    return ADAPTERS[name](result) if name in ADAPTERS and "table" not in result else result


def shared_machine(result: Result) -> Result:
    """Turn the turns of ``benchmarks.shared_machine`` into a row for each server and priority of its workers."""
    situations: dict[str, None] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    for server, turns in result["runs"].items():
        for key, reports in turns.items():
            situation, _, kind = key.partition(" | ")
            situations[situation] = None
            row = runs.setdefault(f"{server}, {kind}", [{"figures": {}} for _ in reports])
            for into, report in zip(row, reports, strict=True):
                into["figures"][situation] = report["requests_per_second"]
    reference = next(iter(runs))
    table = Table("shared_machine", "A server on a shared machine", "requests/s", reference, list(situations), "higher")
    rows = summarize([Contestant(name, group="") for name in runs], runs, {}, table)
    return _result(table, result, rows)


def merge_speed(result: Result) -> Result:
    """Turn the rows of ``benchmarks.merge_speed`` into a table of seconds; the copy and the products alone are its floors."""
    table = Table(
        "merge_speed", f"Merging into {result['checkpoint_gb']:.2f} GB of {result['settings']['dtype']}", "s", "copy",
        ["seconds", "CPU seconds", "peak MB"], judged=["seconds"],
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, row in result["rows"].items():
        kind = "floor" if name == "copy" else "ours" if name.startswith("ours") else "peer"
        figures = {
            "seconds": {
                "median": row["seconds"], "range": row["seconds_range"],
                "ratio": row["ratio_to_copy"], "ratio_range": row["ratio_range"],
            },
            "CPU seconds": _alone(row["cpu_seconds"]),
        }  # fmt: skip
        if row["peak_mb"] is not None:
            figures["peak MB"] = _alone(row["peak_mb"])
        rows.append({"name": name, "kind": kind, "group": "", "figures": figures})
    floor = {"seconds": _alone(result["product_floor_seconds"])}
    rows.append({"name": "the products B · A alone", "kind": "floor", "group": "", "figures": floor})
    if "mergekit" not in result["rows"]:
        rows.append({"name": "mergekit", "kind": "peer", "group": "", "not_measured": "run without --mergekit"})
    return _result(table, result, rows)


def provider_speed(result: Result) -> Result:
    """Turn the providers of ``benchmarks.provider_speed`` into rows."""
    names = list(result["providers"])
    columns = [key for row in result["providers"].values() for key in row if "×" in key]
    table = Table("provider_speed", "Execution providers", "ms", names[0], list(dict.fromkeys(columns)))
    rows = []
    for name, row in result["providers"].items():
        about = {"name": name, "kind": "ours", "group": name.partition(", ")[2]}
        if row.get("not_measured"):
            rows.append({**about, "not_measured": row["not_measured"]})
            continue
        figures = {column: {**_alone(row[column]["ms"]), "ratio": row[column]["ratio"]} for column in table.columns}
        rows.append({**about, "figures": figures})
    return _result(table, result, rows)


def _alone(value: float) -> dict[str, Any]:
    """Return a figure of which only the median is recorded."""
    return {"median": value}


def _result(table: Table, result: Result, rows: Sequence[Mapping[str, Any]]) -> Result:
    return {"table": vars(table), "environment": result["environment"], "settings": result["settings"], "rows": rows}


ADAPTERS: dict[str, Callable[[Result], Result]] = {
    "merge_speed": merge_speed,
    "provider_speed": provider_speed,
    "shared_machine": shared_machine,
}
