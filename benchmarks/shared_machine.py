"""What ``serve`` answers on an idle machine and beside two busy threads, with and without a lower priority of its work.

The server is ``rmlora-deploy serve`` with MiniLM, merged, and the load is ``rmlora-deploy loadtest`` with 16 clients in a
closed loop. Beside them there is nothing, or two busy threads of normal priority: in the same session as the server, or in
a session of their own, because Linux weighs priorities within a session only (sched_autogroup). One server runs, and its
workers change their priority from turn to turn, so that a disturbance meets all alike: ``nice 5`` is what they once
had, ``normal`` is the priority of any program, which they have now, and ``batch`` is that under Linux's policy SCHED_BATCH.
Those for the rows of heavy requests stay 9 below.

    python -m benchmarks.shared_machine         # writes benchmarks/results/shared_machine.json, about 7 minutes
    python -m benchmarks.shared_machine --quick # one short round, nothing is written
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.overload import load, make_bundle
from benchmarks.results import environment, write_result
from benchmarks.served import server

CLIENTS, BUSY, HEAVY = 16, 2, 9
KINDS = {"nice 5": (5, os.SCHED_OTHER), "normal": (0, os.SCHED_OTHER), "batch": (0, os.SCHED_BATCH)}
"""Name → niceness and policy of the workers."""
SITUATIONS = ("nothing else", "busy threads in the same session", "busy threads in another session")
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""A busy thread, until the benchmark that started it is gone."""


def main() -> None:
    """Run all turns, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="turns of each kind (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn (default %(default)s)")
    parser.add_argument("--work", type=Path, help="keep the bundle here (default: a temporary directory)")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, and write nothing")
    options = parser.parse_args()
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundle(work)
        runs = {name: measure(work, flags, rounds, seconds) for name, flags in _servers().items()}
    result = {
        "environment": environment(),
        "load_average_before": before,
        "settings": {"rounds": rounds, "seconds": seconds, "clients": CLIENTS, "busy_threads": BUSY},
        "servers": {name: summarize(turns) for name, turns in runs.items()},
        "runs": runs,
    }
    print(json.dumps(result["servers"], indent=1))
    if not options.quick:
        print(write_result("shared_machine", result))


def _servers() -> dict[str, tuple[str, ...]]:
    """Return the two ways to use the cores: one batch on all, and one batch on each."""
    cores = str(len(os.sched_getaffinity(0)))
    return {"default": (), "one worker per core": ("--workers", cores, "--threads", "1")}


def measure(work: Path, flags: tuple[str, ...], rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return the load test's figures of every turn: situation and kind → one for each round."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with server(work / "merged", *flags) as url:
        workers = Workers()
        load(url, work / "merged.json", "--clients", CLIENTS, "--seconds", 2)
        for number in range(rounds):
            for situation in SITUATIONS:
                with busy_threads(situation):
                    for kind in list(KINDS) if number % 2 == 0 else reversed(KINDS):
                        workers.become(kind)
                        print(f"{situation}, {kind}:", end=" ", flush=True)
                        turn = load(url, work / "merged.json", "--clients", CLIENTS, "--seconds", seconds)
                        runs.setdefault(f"{situation} | {kind}", []).append(turn)
    return runs


class Workers:
    """The threads of the server that compute batches, which this process has started."""

    def __init__(self) -> None:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        threads = [int(task) for child in _children() for task in os.listdir(f"/proc/{child}/task")]
        self._heavy = [task for task in threads if os.getpriority(os.PRIO_PROCESS, task) - usual == HEAVY]
        if not self._heavy:
            raise RuntimeError("the workers for heavy requests were not recognized by their priority")
        # The others are as many, and were started just before them.
        earlier = sorted(task for task in threads if task < min(self._heavy))
        self._light = earlier[-len(self._heavy) :]

    def become(self, kind: str) -> None:
        """Give the workers a kind's priority and policy; a lower priority than before needs no right, a higher one root's."""
        niceness, policy = KINDS[kind]
        for tasks, less in ((self._light, 0), (self._heavy, HEAVY)):
            for task in tasks:
                os.sched_setscheduler(task, policy, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, task, niceness + less)


def _children() -> list[int]:
    return [
        int(child)
        for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")
        for child in path.read_text().split()
    ]


@contextmanager
def busy_threads(situation: str) -> Iterator[None]:
    """Keep two threads busy beside the server."""
    count = 0 if situation == SITUATIONS[0] else BUSY
    apart = situation == SITUATIONS[2]
    others = [subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=apart) for _ in range(count)]
    time.sleep(0.3 if others else 0)
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def summarize(turns: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return situation → kind → medians over the rounds."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for key, runs in turns.items():
        situation, kind = key.split(" | ")
        table.setdefault(situation, {})[kind] = {
            "requests_per_second": round(statistics.median(run["requests_per_second"] for run in runs), 1),
            **{
                f"{name}_ms": round(statistics.median(run["latency_ms"][name] for run in runs), 1)
                for name in ("p50", "p99")
            },
        }
    return table


if __name__ == "__main__":
    main()
