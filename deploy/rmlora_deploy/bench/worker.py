"""One contestant in its own process: it reads a job from stdin and writes one line of JSON to stdout.

It needs no torch if the engine is ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError, RMLoRAError
from rmlora_deploy.bench.bench_inputs import random_inputs
from rmlora_deploy.bench.bench_plan import SPECIALIZED
from rmlora_deploy.bench.engines import open_model
from rmlora_deploy.bench.generation_worker import measure_generation
from rmlora_deploy.bench.machine import OthersWatch, peak_mb, pin, resident_mb
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["main"]

_FEWEST_SAMPLES = 5


def main() -> None:
    """Run the job; one of our own errors becomes ``{"error": …, "kind": …}``, any other ends the process."""
    job = json.loads(sys.stdin.read())
    try:
        result = _run(job)
    except RMLoRAError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    bundle = Bundle.open(job["bundle"], check_files=False)
    if bundle.task.outputs.kind == "text":
        return measure_generation(bundle, job)
    pinned = pin(job["cores"]) if job["cores"] else False
    batches = [(rows, random_inputs(bundle, rows, tokens, job["seed"])) for rows, tokens in job["shapes"]]
    started = time.perf_counter()
    model = open_model(bundle, job)
    load_seconds, loaded_mb = time.perf_counter() - started, resident_mb()
    figures, logits = [], None
    for rows, arrays in batches:
        bound = model.bind(arrays)
        figures.append(_measure(bound.run, rows, job))
        if logits is None and job.get("use") in (
            None,
            "one adapter",
            SPECIALIZED,
        ):  # the other uses are not the model PyTorch runs
            logits = _finite(np.asarray(bound.logits(), dtype=np.float64), bundle, job).tolist()
    return {
        "how": model.how,
        "pinned": pinned,
        "load_seconds": load_seconds,
        "loaded_mb": loaded_mb,
        "peak_mb": peak_mb(),
        "figures": figures,
        "logits": logits,
    }


def _finite(logits: npt.NDArray[np.float64], bundle: Bundle, job: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return logits that are numbers.

    Raises:
        InputError: they are not.
    """
    if not np.isfinite(logits).all():
        who = f"the graph of {bundle.path} ({bundle.precision})" if job["engine"] == "onnx" else "PyTorch"
        raise InputError(f"With random inputs {who} gives NaN or infinity, which cannot be compared.")
    return logits


def _measure(call: Callable[[], object], rows: int, job: Mapping[str, Any]) -> dict[str, float | None]:
    """Repeat ``call`` for the job's ``seconds`` and return percentiles in milliseconds, the rate, and other load."""
    for _ in range(job["warmup"]):
        call()
    others = OthersWatch(job["cores"])  # after the warm-up, during which torch.compile's helper processes work
    samples: list[float] = []
    end = time.perf_counter() + job["seconds"]
    while len(samples) < _FEWEST_SAMPLES or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    p50, p90, p99 = np.percentile(1e3 * np.array(samples), [50, 90, 99])
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "rows_per_second": rows * len(samples) / sum(samples),
        "samples": len(samples),
        "others_share": others.share(),
    }


if __name__ == "__main__":
    main()
