"""Two replicas on Ray against one plain server: the same machine, bundle, 1,000 adapters and closed-loop load.

What ``benchmarks.serving`` does, with these contestants: ``plain`` is one process that computes with as many threads as
there are replicas; ``ray`` is ``rmlora-deploy serve --ray --replicas 2``, one thread each, with Ray's proxy and two ingresses on
the same cores. Replicas, ingresses, proxy, load and Ray's own processes share the machine, so this measures what Ray costs
on a machine too small for it, and how requests spread over replicas; it says nothing about more machines.

    python -m benchmarks.serving_ray           # writes benchmarks/results/serving_ray.json, about 10 minutes
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.results import environment, write_result
from benchmarks.serving import make_bundles, server


def main() -> None:
    """Make the bundle, load both servers in turns, print and write the figures; exit 1 for a wrong answer or an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one turn (default %(default)s)")
    parser.add_argument("--adapters", type=int, default=1000, help="registered adapters (default %(default)s)")
    parser.add_argument("--bank", type=int, default=64, help="adapters in memory of each (default %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="closed-loop clients (default %(default)s)")
    parser.add_argument(
        "--replicas", type=int, default=2, help="on Ray, and threads of the other (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="keep bundles here (default: a temporary directory)")
    options = parser.parse_args()
    contestants = {
        "plain": ("--threads", str(options.replicas)),
        "ray": ("--ray", "--replicas", str(options.replicas), "--threads", "1"),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundles(work, options.adapters)
        for number in range(options.rounds):
            for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
                runs[name].append(load(work, contestants[name], options))
                shown = runs[name][-1]
                print(
                    f"{name:6} {shown['requests_per_second']:7.1f}/s  p50 {shown['latency_ms']['p50']:6.1f}  p99 "
                    f"{shown['latency_ms']['p99']:6.1f} ms  hit rate {shown['hit_rate']:.3f}  "
                    f"rows {sorted(shown['rows'].values())}  {shown['rss_mb']} MB",
                    flush=True,
                )
    both = [run for name in runs for run in runs[name]]
    result = {
        "environment": environment(),
        "settings": {key: value for key, value in vars(options).items() if key != "work"},
        "errors": sum(sum(run["errors"].values()) for run in both),
        "wrong": sum(run["wrong"] for run in both),
        "runs": runs,
    }
    print(write_result("serving_ray", result))
    sys.exit(1 if result["errors"] or result["wrong"] else 0)


def load(work: Path, flags: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, put it under load and return the load test's figures with the server's own."""
    models = json.loads((work / "branches.json").read_text())["answers"]
    with server(work / "branches", "--bank", str(options.bank), *flags) as url:
        done = subprocess.run(
            [
                sys.executable, "-m", "deploy", "loadtest", url, "--json", "--reference", str(work / "branches.json"),
                "--seconds", str(options.seconds), "--clients", str(options.clients),
                *(part for model in models for part in ("--model", model)),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()  # noqa: S310 - our own server
        memory = resident_megabytes()
    bank, rows, residents = Counter[str](), Counter[str](), 0.0
    for family in text_string_to_metric_families(metrics):
        for item in family.samples:
            if item.name == "rmlora_bank_total":
                bank[item.labels["event"]] += item.value  # type: ignore[assignment]
            elif item.name == "rmlora_rows_total":
                rows[item.labels.get("replica", "plain")] += item.value  # type: ignore[assignment]
            elif item.name == "rmlora_bank_adapters":
                residents += item.value
    return {
        **json.loads(done.stdout),
        "bank": dict(bank),
        "hit_rate": round(bank["hits"] / max(1, bank["hits"] + bank["misses"]), 4),
        "adapters_in_memory": residents,
        "rows": dict(rows),
        "rss_mb": memory,
    }


def resident_megabytes() -> dict[str, list[int]]:
    """Return the resident memory of the processes of both kinds of server that run now, by what they are."""
    found: dict[str, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            size = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
        except OSError:
            continue
        kind = words[0].partition(":rmlora:")[2].partition(".")[0] or (
            "command" if words[1:4] == ["-m", "deploy", "serve"] else ""
        )
        if kind and size:
            found.setdefault(kind, []).append(round(int(size.group(1)) / 1024))
    return found


if __name__ == "__main__":
    main()
