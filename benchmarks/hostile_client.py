"""What a hostile client does to the others: their latency with and without it, and the server's memory.

One server has MiniLM for texts and DINOv2-small for images, both merged, and default limits. Light clients send one text per
request at random times, at 30 % of the capacity. Beside them, two hostile connections send the most expensive requests
they can, one after another without a pause: texts and images far beyond the limits, texts and images that use up all of
the limits, and a body of millions of values. Phases with and without them alternate. Server and clients share the
machine's cores, so the hostile client, which in practice has a machine of its own, runs at the lowest priority.

    python -m benchmarks.hostile_client        # writes benchmarks/results/hostile_client.json, about 5 minutes
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.assets import dinov2_small
from benchmarks.overload import load, make_bundle
from benchmarks.random_adapters import save_random_adapter
from benchmarks.results import environment, write_result
from benchmarks.served import server, split_cores
from benchmarks.serving import LABELS, RANK
from rmlora_deploy.bench.machine import pin

SHARE, CONNECTIONS = 0.3, 2
TIMES = 2.0
"""How much longer the others' 99th percentile may be."""
MEMORY_MB = 1536
"""Memory that the server may take; docs/containers/kubernetes.yaml has a limit above it."""


def main() -> None:
    """Run the phases, print and write the figures; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one phase (default %(default)s)")
    parser.add_argument("--work", type=Path, help="keep the bundles here (default: a temporary directory)")
    parser.add_argument("--send", nargs=2, metavar=("FILE", "URL"), help="be the hostile client (used internally)")
    options = parser.parse_args()
    if options.send:
        send(options.send[1], Path(options.send[0]).read_bytes())
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundle(work)
        make_image_bundle(work)
        server_cores, client_cores = split_cores()
        bundles = (f"merged={work / 'merged'}", f"photos={work / 'photos'}")
        flags = ("--workers", str(len(server_cores)), "--threads", "1")
        with server(*bundles, *flags, cores=server_cores) as url, MemoryWatch() as memory:
            pin(client_cores)
            result = measure(url, work / "merged.json", options.seconds)
    result["peak_memory_mb"], result["memory_bound_mb"] = round(memory.peak_mb), MEMORY_MB
    result["passed"] = result["passed"] and memory.peak_mb <= MEMORY_MB
    result = {"environment": environment(), "settings": {"seconds": options.seconds, "share": SHARE}, **result}
    print(json.dumps({key: value for key, value in result.items() if key not in ("environment", "runs")}, indent=1))
    print(write_result("hostile_client", result))
    sys.exit(0 if result["passed"] else 1)


def make_image_bundle(work: Path) -> None:
    """Export DINOv2-small with a random adapter merged."""
    if not (work / "photos").is_dir():
        base = dinov2_small(work / "dinov2")
        save_random_adapter(base, "image-classification", work / "p0", rank=RANK, labels=LABELS, seed=0, size=0.02)
        flags = ("export", str(base), "-a", str(work / "p0"), "-o", str(work / "photos"), "--no-verify")
        subprocess.run([sys.executable, "-m", "rmlora_deploy", *flags], check=True, stdout=subprocess.DEVNULL)


def hostile_bodies() -> dict[str, bytes]:
    """Return the most expensive requests, by name."""
    words = "the quick brown fox jumps over it "

    def texts(count: int, characters: int) -> bytes:
        text = (words * (characters // len(words) + 1))[:characters]
        return json.dumps({"model": "merged", "input": [text] * count}).encode()

    def images(count: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (5000, 5000), (200, 30, 30)).save(buffer, "PNG", optimize=True)
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return json.dumps({"model": "photos", "input": [url] * count}).encode()

    return {
        "80 texts of 100,000 characters": texts(80, 100_000),
        "80 texts of 12,500 characters": texts(80, 12_500),
        "74 images of 5000 × 5000": images(74),
        "4 images of 5000 × 5000": images(4),
        "2.7 million values": b'{"model": "merged", "input": [' + b"{}," * 2_700_000 + b"{}]}",
    }


def measure(url: str, reference: Path, seconds: float) -> dict[str, Any]:
    """Return the figures of all phases."""
    load(url, reference, "--clients", 32, "--seconds", 3)
    rate = round(SHARE * load(url, reference, "--clients", 32, "--seconds", seconds / 2)["requests_per_second"], 1)
    alone, beside = [], {}
    for name, body in hostile_bodies().items():
        alone.append(load(url, reference, "--rate", rate, "--seconds", seconds))
        with hostile(url, body) as replies:
            beside[name] = {**load(url, reference, "--rate", rate, "--seconds", seconds), "hostile": replies}
        print(f"  {name}: {dict(replies)}", flush=True)
    usual = statistics.median(run["latency_ms"]["p99"] for run in alone)
    ratios = {name: round(run["latency_ms"]["p99"] / usual, 2) for name, run in beside.items()}
    errors = sum((Counter(run["errors"]) for run in (*alone, *beside.values())), Counter())
    return {
        "rate": rate,
        "p99_alone_ms": usual,
        "p99_ratios": ratios,
        "errors_of_others": dict(errors),
        "passed": max(ratios.values()) <= TIMES and not errors,
        "runs": {"alone": alone, "beside": beside},
    }


@contextmanager
def hostile(url: str, body: bytes) -> Iterator[Counter[str]]:
    """Send ``body`` again and again from another process of the lowest priority; counts the replies by status."""
    replies: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.hostile_client", "--send", file.name, url]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(1.5)
        try:
            yield replies
        finally:
            said, _ = process.communicate(timeout=90)  # the end of its input ends it
            replies.update(json.loads(said))


def send(url: str, body: bytes) -> None:
    """Send ``body`` from several connections until the input ends, and print the replies by status."""
    os.nice(19)  # a hostile client has a machine of its own
    replies: Counter[str] = Counter()
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
            try:
                connection.request("POST", "/classify", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                reply.read()
                replies[str(reply.status)] += 1
            except OSError:  # refused before all of it was sent
                replies["closed"] += 1
            finally:
                connection.close()

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(60)
    print(json.dumps(replies))


class MemoryWatch:
    """Samples the memory of the server that this process has started, and of the processes that the server starts."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        (pid,) = (child for child in _children(os.getpid()) if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes())
        while not self._over.wait(0.05):
            with suppress(OSError, StopIteration):  # a process that ends meanwhile
                self.peak_mb = max(self.peak_mb, sum(map(_resident_mb, (pid, *_children(pid)))))


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
