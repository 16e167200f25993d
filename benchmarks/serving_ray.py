"""Two replicas on Ray against one plain server: the same machine, bundle, 1,000 adapters and closed-loop load.

The measurement is that of ``benchmarks.serving``, with these contestants: ``plain`` is one process with as many threads as
there are replicas; ``ray`` is ``rmlora-deploy serve --ray --replicas 2`` with one thread each, and Ray's proxy and two
ingresses on the same cores. Replicas, ingresses, proxy, load and Ray's own processes share the machine, so this measures
the cost of Ray on a machine too small for it, and how requests spread over replicas; it says nothing about several machines.

    python -m benchmarks.serving_ray           # writes benchmarks/results/serving_ray.json, about 10 minutes
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.results import environment, write_result
from benchmarks.served import load, make_parser, server, settings_of, take_turns
from benchmarks.serving import make_bundles


def main() -> None:
    """Make the bundle, load both servers in turn, print and write the figures; exit with 1 for a wrong answer or an error."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--replicas", type=int, default=2, help="replicas on Ray, and threads of the plain server (default %(default)s)"
    )
    options = parser.parse_args()
    contestants = {
        "plain": ("--threads", str(options.replicas)),
        "ray": ("--ray", "--replicas", str(options.replicas), "--threads", "1"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundles(work, options.adapters)
        runs = take_turns(tuple(contestants), options.rounds, lambda name: run(work, contestants[name], options), shown)
    both = [run for name in runs for run in runs[name]]
    result = {
        "environment": environment(),
        "settings": settings_of(options),
        "errors": sum(sum(run["errors"].values()) for run in both),
        "wrong": sum(run["wrong"] for run in both),
        "runs": runs,
    }
    print(write_result("serving_ray", result))
    sys.exit(1 if result["errors"] or result["wrong"] else 0)


def shown(run: dict[str, Any]) -> str:
    """Return the line about a turn."""
    return (
        f"{run['requests_per_second']:7.1f}/s  p50 {run['latency_ms']['p50']:6.1f}  p99 "
        f"{run['latency_ms']['p99']:6.1f} ms  hit rate {run['hit_rate']:.3f}  "
        f"rows {sorted(run['rows'].values())}  {run['rss_mb']} MB"
    )


def run(work: Path, flags: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, put it under load and return the figures of the load test and of the server."""
    with server(work / "branches", "--max-active-adapters", str(options.max_active_adapters), *flags) as url:
        figures = load(url, work / "branches.json", options)
        metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()  # noqa: S310 - our own server
        memory = resident_megabytes()
    events, rows, cached = Counter[str](), Counter[str](), 0.0
    for family in text_string_to_metric_families(metrics):
        for item in family.samples:
            if item.name == "rmlora_adapter_cache_total":
                events[item.labels["event"]] += item.value  # type: ignore[assignment]
            elif item.name == "rmlora_rows_total":
                rows[item.labels.get("replica", "plain")] += item.value  # type: ignore[assignment]
            elif item.name == "rmlora_cached_adapters":
                cached += item.value
    return {
        **figures,
        "bank": dict(events),
        "hit_rate": round(events["hits"] / max(1, events["hits"] + events["misses"]), 4),
        "adapters_in_memory": cached,
        "rows": dict(rows),
        "rss_mb": memory,
    }


def resident_megabytes() -> dict[str, list[int]]:
    """Return the resident memory, in MiB, of the running server processes, by kind."""
    found: dict[str, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            size = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
        except OSError:
            continue
        kind = words[0].partition(":rmlora:")[2].partition(".")[0] or (
            "command" if words[1:4] == ["-m", "rmlora_deploy", "serve"] else ""
        )
        if kind and size:
            found.setdefault(kind, []).append(round(int(size.group(1)) / 1024))
    return found


if __name__ == "__main__":
    main()
