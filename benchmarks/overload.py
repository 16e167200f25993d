"""A server at its capacity and at three times that: what it still answers, how soon, and whether ``Retry-After`` is true.

The server is ``rmlora-deploy serve`` with MiniLM, merged, and the load is ``rmlora-deploy loadtest``: one text of 22
tokens on average per request, every answer checked. Capacity is the throughput of a closed loop of 32 clients, before and
after the rest. Then requests are sent at random times (an open loop, which does not slow down when the server does): at
that rate; for a while at three times that rate by clients that come back once, when the server told them to; and at three
times that rate by clients that do not. Server and clients share the machine's cores.

    python -m benchmarks.overload              # writes benchmarks/results/overload.json, about 4 minutes
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.assets import minilm
from benchmarks.random_adapters import save_random_adapter
from benchmarks.results import environment, write_result
from benchmarks.served import server, split_cores
from benchmarks.serving import LABELS, RANK, real_texts, write_reference
from rmlora_deploy.bench.machine import pin
from rmlora_deploy.bundles.bundle import Bundle

TIMES = 3
CLIENTS = 32
GOODPUT = 0.9
"""Share of the capacity that the server must still answer under overload."""
RETRY_TRUE = 0.95
"""Share of the clients that must be let in when they come back after ``Retry-After``."""


def main() -> None:
    """Run the phases, print and write the figures; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the overload (default %(default)s)")
    parser.add_argument("--work", type=Path, help="keep the bundle here (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundle(work)
        server_cores, client_cores = split_cores()
        with server(work / "merged", "--workers", str(len(server_cores)), "--threads", "1", cores=server_cores) as url:
            pin(client_cores)
            runs = measure(url, work / "merged.json", options.seconds)
    result = {"environment": environment(), "settings": {"seconds": options.seconds, "clients": CLIENTS}, **judge(runs)}
    print(json.dumps({key: value for key, value in result.items() if key not in ("environment", "runs")}, indent=1))
    print(write_result("overload", result))
    sys.exit(0 if result["passed"] else 1)


def make_bundle(work: Path) -> None:
    """Export MiniLM with a random adapter merged, and write the expected answers."""
    if not (work / "merged").is_dir():
        save_random_adapter(minilm(), "text-classification", work / "a0", rank=RANK, labels=LABELS, seed=0, size=0.02)
        flags = ("export", str(minilm()), "-a", str(work / "a0"), "-o", str(work / "merged"), "--no-verify")
        subprocess.run([sys.executable, "-m", "rmlora_deploy", *flags], check=True, stdout=subprocess.DEVNULL)
    bundle = Bundle.open(work / "merged", check_files=False)
    texts = real_texts()
    random.Random(0).shuffle(texts)
    answers = bundle.session().run(None, bundle.preprocessor()(texts))[0]
    write_reference(work / "merged.json", texts, {"merged": list(answers)}, bundle)


def measure(url: str, reference: Path, seconds: float) -> dict[str, Any]:
    """Return the load test's figures of every phase."""
    load(url, reference, "--clients", CLIENTS, "--seconds", 3)
    runs = {"capacity before": load(url, reference, "--clients", CLIENTS, "--seconds", seconds / 3)}
    rate = runs["capacity before"]["requests_per_second"]
    runs["at capacity"] = load(url, reference, "--rate", rate, "--seconds", seconds / 3)
    runs["coming back"] = load(url, reference, "--rate", TIMES * rate, "--seconds", seconds / 3, "--retries", 1)
    runs["at three times"] = load(url, reference, "--rate", TIMES * rate, "--seconds", seconds)
    runs["capacity after"] = load(url, reference, "--clients", CLIENTS, "--seconds", seconds / 3)
    return runs


def load(url: str, reference: Path, *flags: object) -> dict[str, Any]:
    """Run ``rmlora-deploy loadtest``, print a line and return its figures."""
    command = [sys.executable, "-m", "rmlora_deploy", "loadtest", url, "--json", "--model", "merged"]
    done = subprocess.run(
        [*command, "--reference", str(reference), *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout)
    latency = figures["latency_ms"]
    print(
        f"{' '.join(map(str, flags)):34} {figures['requests_per_second']:7.1f}/s  p50 {latency['p50']:8.1f}  "
        f"p99 {latency['p99']:8.1f} ms  {figures['errors']}",
        flush=True,
    )
    return figures


def judge(runs: dict[str, Any]) -> dict[str, Any]:
    """Return what the runs show, and whether it is what is promised."""
    capacity = (runs["capacity before"]["requests_per_second"] + runs["capacity after"]["requests_per_second"]) / 2
    over, back = runs["at three times"], runs["coming back"]
    shown = {
        "capacity_per_second": round(capacity, 1),
        "goodput_share": round(over["requests_per_second"] / capacity, 3),
        "admitted_and_not_answered": sum(
            count for run in runs.values() for status, count in run["errors"].items() if status != "429"
        ),
        "wrong": sum(run["wrong"] for run in runs.values()),
        "p50_ms": over["latency_ms"]["p50"],
        "max_ms": over["latency_ms"]["max"],
        "came_back": back["retried"],
        "came_back_and_answered_share": round(back["retried_answered"] / max(1, back["retried"]), 3),
    }
    passed = (
        shown["goodput_share"] >= GOODPUT
        and not shown["admitted_and_not_answered"]
        and not shown["wrong"]
        and shown["came_back_and_answered_share"] >= RETRY_TRUE
    )
    return {**shown, "passed": passed, "runs": runs}


if __name__ == "__main__":
    main()
