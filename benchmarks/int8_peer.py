"""One contestant of ``benchmarks.int8``: answers questions on stdin with times or outputs. Imports none of our packages.

    PYTHON benchmarks/int8_peer.py MODEL float32|int8 THREADS

runs the graph MODEL with OpenVINO, as it is or quantized by NNCF on the inputs in ``calibration`` beside it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["serve"]

Feeds = dict[str, Any]


def serve(run: Callable[[Feeds], Any], threads: int) -> None:
    """Answer each line of stdin: the milliseconds of a run for a size, or the outputs of ``run`` for files.

    With one thread they are the processor's time, which other work on the machine disturbs less.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    for line in sys.stdin:
        question = json.loads(line)
        if "files" in question:
            outputs = [run(dict(np.load(file))) for file in question["files"]]
            print(json.dumps({"outputs": np.concatenate(outputs).tolist()}), flush=True)
            continue
        batch, tokens = question["size"]
        ids = np.random.default_rng(0).integers(1000, 20_000, (batch, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        times = []
        for _ in range(5):
            begun = clock()
            run(feeds)
            times.append(clock() - begun)
        print(json.dumps({"ms": 1000 * statistics.median(times)}), flush=True)


def main(model: Path, precision: str, threads: int) -> None:
    """Serve a graph with OpenVINO."""
    import openvino

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    core = openvino.Core()
    graph = core.read_model(model)
    if precision == "int8":
        graph = quantized(graph, model.parent / "calibration")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise bf16 where the processor has it
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    serve(lambda feeds: request.infer(feeds)[0], threads)


def quantized(graph: Any, calibration: Path) -> Any:
    """Return ``graph`` quantized by NNCF's recipe for transformers."""
    import nncf

    inputs = [dict(np.load(file)) for file in sorted(calibration.glob("*.npz"))]
    printed = os.dup(1)
    os.dup2(2, 1)  # NNCF draws its progress on stdout, which holds the answers
    try:
        return nncf.quantize(
            graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
        )
    finally:
        sys.stdout.flush()
        os.dup2(printed, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
