"""Ten minutes of threads that run, register, unload and evict adapters of one graph: no wrong row, no leak.

200 adapters of random rank and number of labels on all projections of MiniLM; the adapter cache holds 32, so most runs
evict. Eight threads send batches in which each row has an adapter and a strength; each thread also unloads and registers
its own adapters while the others use them. Every row is compared with the output of the graph for that adapter alone,
given its LoRA inputs directly. Exits with 1 if a row is wrong, a thread fails, or memory grows.

    python -m benchmarks.soak                  # writes benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.assets import minilm
from benchmarks.branches import random_inputs
from benchmarks.random_adapters import draw_arrays
from benchmarks.results import environment, write_result
from rmlora.errors import InputError
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from rmlora_deploy.bench.machine import resident_mb
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.runtime import AdapterSession

ADAPTERS, CAPACITY, CONCURRENT_RUNS, ROWS, TEXTS, TOKENS = 200, 32, 2, 8, 12, 16
STRENGTHS = (1.0, 0.5)
TOLERANCE = 1e-4
GROWTH_MB = 20.0
"""Allowed growth of memory between the second and the last quarter of the time."""


class Soak:
    """The session under test, the expected output of every adapter, and the counters."""

    def __init__(self, bundle: Bundle, directory: Path) -> None:
        self.session: AdapterSession = bundle.adapter_session(
            threads=1, max_active_adapters=CAPACITY, max_concurrent_runs=CONCURRENT_RUNS, rows=ROWS
        )
        for name in bundle.adapters:
            self.session.unload(name)
        self.inputs = random_inputs(TEXTS, TOKENS)
        self.files = {f"s{number}": directory / f"s{number}.onnx_adapter" for number in range(ADAPTERS)}
        self.expected: dict[tuple[str, float], npt.NDArray[Any]] = {}
        plain = bundle.session(threads=2)
        for seed, (name, file) in enumerate(self.files.items()):
            rng = np.random.default_rng(seed)
            rank, labels = int(rng.integers(1, 17)), int(rng.integers(2, 8))
            arrays = draw_arrays(self.session.lora_inputs, rng, rank=rank, labels=labels)
            write_onnx_adapter(file, arrays)
            for strength in STRENGTHS:
                scaled = {
                    key: array * np.float32(strength) if key.endswith("lora_B") else array
                    for key, array in arrays.items()
                }
                self.expected[name, strength] = np.asarray(plain.run(None, {**self.inputs, **scaled})[0])
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.memory: list[float] = []
        self._lock = threading.Lock()

    def register(self, name: str) -> None:
        """Register an adapter."""
        self.session.register(name, partial(read_onnx_adapter, self.files[name]))

    def work(self, number: int, threads: int, end: float) -> None:
        """Run batches and register adapters in one thread until ``end``."""
        rng = np.random.default_rng(number)
        names = list(self.files)
        own = names[number::threads]
        try:
            while time.monotonic() < end:
                if rng.random() < 0.2:
                    name = own[int(rng.integers(len(own)))]
                    self.session.unload(name)
                    self.register(name)
                    self._count(reloaded=1)
                self._run(rng, names)
        except Exception as error:  # noqa: BLE001 - any exception is a failure of the test
            self._report(f"thread {number}: {type(error).__name__}: {error}")

    def _run(self, rng: np.random.Generator, names: list[str]) -> None:
        rows = int(rng.integers(1, ROWS + 1))
        texts = rng.integers(0, TEXTS, rows)
        # Half of the batches mix adapters, the others have one adapter for all rows.
        drawn = [names[i] for i in rng.integers(0, len(names), rows)] if rng.random() < 0.5 else None
        drawn = drawn or [names[int(rng.integers(len(names)))]] * rows
        strengths = rng.choice(STRENGTHS, rows, p=[0.8, 0.2])
        try:
            got = self.session.run(
                {key: array[texts] for key, array in self.inputs.items()},
                [{name: float(strength)} for name, strength in zip(drawn, strengths, strict=True)],
            )
        except InputError as error:
            if "There is no adapter" not in str(error):
                raise
            self._count(unknown=1)  # another thread has unloaded it for a moment
            return
        self._count(runs=1, rows=rows)
        for text, name, strength, output in zip(texts, drawn, strengths, got, strict=True):
            expected = self.expected[name, float(strength)][text]
            if output.shape != expected.shape or np.abs(output - expected).max() > TOLERANCE * np.abs(expected).max():
                self._report(f"{name} at {strength}: {output} where {expected} is expected")

    def _count(self, **amounts: int) -> None:
        with self._lock:
            self.counts.update(amounts)

    def _report(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)


def main() -> None:
    """Run the test, print the counters and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default %(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="threads that send batches (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(_bundle(Path(scratch)), Path(scratch))
        for name in soak.files:
            soak.register(name)
        seconds = _run(soak, 60 * options.minutes, options.threads)
    quarter = len(soak.memory) // 4
    growth = statistics.median(soak.memory[-quarter:]) - statistics.median(soak.memory[quarter : 2 * quarter])
    passed = not soak.problems and growth <= GROWTH_MB
    result = {
        "environment": environment(),
        "passed": passed,
        "seconds": round(seconds),
        "threads": options.threads,
        "adapters": ADAPTERS,
        "bank": CAPACITY,
        **soak.counts,
        "evictions": soak.session.cache.evictions,
        "wrong_or_failed": len(soak.problems),
        "memory_growth_mb": round(growth, 1),
        "memory_mb": [round(value) for value in soak.memory[:: max(1, len(soak.memory) // 20)]],
    }
    print("\n".join(f"{key}: {value}" for key, value in result.items() if key != "environment"))
    for problem in soak.problems[:10]:
        print(problem, file=sys.stderr)
    print(write_result("soak", result))
    sys.exit(0 if passed else 1)


def _run(soak: Soak, seconds: float, threads: int) -> float:
    """Run the threads, show progress and sample memory; return the seconds it took."""
    start = time.monotonic()
    workers = [
        threading.Thread(target=soak.work, args=(number, threads, start + seconds), daemon=True)
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("soaking", total=seconds)
        while any(worker.is_alive() for worker in workers):
            time.sleep(1)
            soak.memory.append(resident_mb() or 0.0)
            rows, bad = soak.counts["rows"], len(soak.problems)
            bar.update(task, completed=time.monotonic() - start, description=f"{rows:,} rows checked, {bad} wrong")
    return time.monotonic() - start


def _bundle(scratch: Path) -> Bundle:
    """Export MiniLM with branches on all projections."""
    from benchmarks.random_adapters import save_random_adapter

    adapter = save_random_adapter(
        minilm(), "text-classification", scratch / "adapter", rank=4, labels=("no", "yes"), seed=0
    )
    settings = ExportSettings(str(minilm()), {"first": adapter}, scratch / "bundle", mode="branches", verify=False)
    return export_bundle(settings, on_progress=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
