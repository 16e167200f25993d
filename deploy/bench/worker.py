"""One contestant in its own process: reads a job from stdin, writes one line of JSON to stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from rmlora.errors import RMLoRAError

__all__ = ["main", "random_inputs"]

Arrays = dict[str, np.ndarray]


def main() -> None:
    """Run the job; an expected error becomes ``{"error": …}``."""
    job = json.loads(sys.stdin.read())
    os.sched_setaffinity(0, job["cores"])
    try:
        result = _run(job)
    except RMLoRAError as error:
        result = {"error": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")


def random_inputs(bundle: Bundle, rows: int, tokens: int | None, seed: int) -> Arrays:
    """Return inputs of the graph's names and types, the same for every engine.

    Args:
        bundle: its manifest lists the inputs.
        rows: batch size.
        tokens: length of texts; None for images.
        seed: seed of the token ids or pixels.
    """
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for item in bundle.manifest["model"]["inputs"]:
        name = item["name"]
        if name == "pixel_values":
            shape = (rows, *(int(side) for side in item["shape"][1:]))
            arrays[name] = rng.standard_normal(shape, dtype=np.float32)
        elif name == "input_ids":
            arrays[name] = rng.integers(5, _vocabulary(bundle), (rows, tokens or 1), dtype=np.int64)
        else:
            arrays[name] = np.full((rows, tokens or 1), int(name == "attention_mask"), dtype=np.int64)
    return arrays


def _vocabulary(bundle: Bundle) -> int:
    config = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 1000)


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    bundle = Bundle.open(job["bundle"], check_files=False)
    before = _resident_mb()
    started = time.perf_counter()
    make = _open_onnx if job["engine"] == "onnx" else _open_torch
    step = make(bundle, job)
    loaded = time.perf_counter() - started
    memory = _resident_mb()
    sizes = []
    for rows, tokens in job["sizes"]:
        call = step(random_inputs(bundle, rows, tokens, job["seed"]))
        sizes.append({"rows": rows, "tokens": tokens, **_measure(call, job["warmup"], job["seconds"], rows)})
    return {
        "load_seconds": loaded,
        "model_mb": memory - before,
        "peak_mb": _peak_mb(),
        "sizes": sizes,
    }


def _measure(call: Callable[[], object], warmup: int, seconds: float, rows: int) -> dict[str, float]:
    for _ in range(warmup):
        call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    milliseconds = 1e3 * np.array(samples)
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "rows_per_second": 1e3 * rows / float(p50),
        "samples": len(samples),
    }


def _open_onnx(bundle: Bundle, job: Mapping[str, Any]) -> Callable[[Arrays], Callable[[], object]]:
    """Return a function that binds inputs; inputs and outputs stay on the device between runs."""
    import onnxruntime as ort

    session = bundle.session(job["provider"], threads=job["threads"])
    device = "cuda" if job["provider"] in ("cuda", "tensorrt") else "cpu"

    def bind(arrays: Arrays) -> Callable[[], object]:
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, device)
        return lambda: session.run_with_iobinding(binding)

    return bind


def _open_torch(bundle: Bundle, job: Mapping[str, Any]) -> Callable[[Arrays], Callable[[], object]]:
    """Return a function that binds inputs to the merged PyTorch model: float32, SDPA, inference mode."""
    import torch

    from rmlora.base import resolve_base
    from rmlora.models import load_adapted

    torch.set_num_threads(job["threads"])
    adapted, _ = load_adapted(resolve_base(job["base"]), Path(job["adapter"]), task=bundle.task)
    model: Any = adapted.merge_and_unload().eval()

    def bind(arrays: Arrays) -> Callable[[], object]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def call() -> object:
            with torch.inference_mode():
                return model(**tensors)

        return call

    return bind


def _resident_mb() -> float:
    return _status("VmRSS")


def _peak_mb() -> float:
    return _status("VmHWM")


def _status(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


if __name__ == "__main__":
    main()
