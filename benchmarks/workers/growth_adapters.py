"""Worker: a batch of random adapters out of a number that grows. The job has ``bundles``, ``use``, ``counts`` and ``shape``.

``few`` uses the same eight, whatever the number of registered ones; ``zipf`` draws each row's adapter out of all of them,
Zipf 1.0, with 64 in memory, so that rare ones are read from their file again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import median_ms, random_inputs, read_job, report, versions
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy.bundles.bundle import Bundle

IN_MEMORY = 64


def main() -> None:
    """Time each number of adapters."""
    job = read_job()
    bundle = Bundle.open(Path(job["bundles"]) / "branches", check_files=False)
    paths = [bundle.file(bundle.adapter(name).file) for name in bundle.adapters]
    figures = {column: time_one(job, bundle, paths, count) for column, count in job["counts"]}
    report(figures, versions=versions("onnxruntime"))


def time_one(job: dict[str, Any], bundle: Bundle, paths: list[Path], count: int) -> float:
    """Register ``count`` adapters and time a batch whose rows draw from them."""
    session = bundle.adapter_session(threads=job["threads"], max_active_adapters=IN_MEMORY)
    names = [f"grown{number}" for number in range(count)]
    for number, name in enumerate(names):
        session.register(name, partial(read_onnx_adapter, paths[number % len(paths)]))
    rng = np.random.default_rng(0)
    used = names if job["use"] == "zipf" else names[:8]
    weights = 1 / np.arange(1, len(used) + 1)
    inputs = random_inputs(*job["shape"])
    rows = len(inputs["input_ids"])

    def run() -> object:
        return session.run(inputs, [used[index] for index in rng.choice(len(used), rows, p=weights / weights.sum())])

    return median_ms(run, job["seconds"], warmup=10, fewest=20)


if __name__ == "__main__":
    main()
