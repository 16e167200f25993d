"""The effect of each optimization of MiniLM's graph: nodes, bytes, error, and latency on one thread.

Compares the exporter's graph, constant folding, ONNX Runtime's fusions (as in ``rmlora-deploy export``) and opset 23 with
its ``Attention`` operator, then the lower precisions. Rounds are interleaved and the fastest run counts, so that other work
on the machine affects all of them equally.

    python -m benchmarks.graphs              # writes benchmarks/results/graphs.json
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch

from benchmarks.assets import minilm
from benchmarks.results import environment, write_result
from rmlora.inputs import Arrays
from rmlora.outputs import Outputs
from rmlora.tasks import get_task
from rmlora.torch_models import load_task_model
from rmlora_converters.graph.files.model_file import save_model
from rmlora_deploy.bundles.describe import operator_counts
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.exporter.optimize import optimize
from rmlora_deploy.exporter.precision import lower_precision
from rmlora_deploy.exporter.torch_export import export_torch
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.compare import compare
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_outputs import torch_output

SIZES = ((1, 32), (8, 32), (8, 128))
ROUNDS, RUNS = 20, 3


def main() -> None:
    """Make and measure every graph, print a line for each and write the file."""
    task = get_task("text-classification")
    torch.manual_seed(0)
    model = load_task_model(minilm(), task, ["no", "yes"]).model.eval()
    processor = task.inputs.load_processor(minilm())
    inputs = trace_inputs(task, model.config, processor)
    batches = make_sample_batches(
        pre := Preprocessor(task, processor, 128, tuple(inputs.tensors)), sample_inputs(pre, None)
    )
    with tempfile.TemporaryDirectory() as directory:
        seconds, paths = _make(model, inputs, batches, Path(directory))
        expected = [torch_output(model, batch, task.outputs) for batch in batches]
        rows = _measure(paths, batches, expected, task.outputs)
    for row in rows:
        print(json.dumps(row))
    print(write_result("graphs", {"environment": environment(), "export_seconds": seconds, "rows": rows}))


def _make(model: Any, inputs: Any, batches: list[Arrays], directory: Path) -> tuple[dict[str, float], dict[str, Path]]:
    seconds, paths = {}, {}

    def save(name: str, graph: ir.Model) -> None:
        paths[name] = directory / f"{name}.onnx"
        save_model(graph, paths[name])

    start = time.monotonic()
    graph = export_torch(model, inputs)
    seconds["torch.onnx"] = round(time.monotonic() - start, 1)
    save("as exported", graph)
    start = time.monotonic()
    best = optimize(graph, batches, directory)
    seconds["optimize"] = round(time.monotonic() - start, 1)
    paths["folded"] = directory / "folded.onnx"  # optimize writes it there
    save("fused", best.model)
    newest = export_torch(model, inputs, opset=23)
    onnxscript.optimizer.optimize(newest)
    save("opset 23", newest)
    for precision in ("fp16", "int8"):
        paths[precision] = directory / f"{precision}.onnx"
        lower_precision(paths["fused"], paths[precision], precision)
    return seconds, paths


def _measure(
    paths: dict[str, Path], batches: list[Arrays], expected: list[np.ndarray], outputs: Outputs
) -> list[dict[str, Any]]:
    sessions = {name: create_session(path, threads=1) for name, path in paths.items()}
    fastest: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        for batch, tokens in SIZES:
            feeds = {name: np.ones((batch, tokens), np.int64) for name in batches[0]}
            for name, session in sessions.items():
                for _ in range(RUNS):
                    start = time.perf_counter()
                    session.run(None, feeds)
                    key = (name, f"{batch}x{tokens}")
                    fastest[key] = min(fastest.get(key, np.inf), time.perf_counter() - start)
    rows = []
    for name, path in paths.items():
        result = compare(expected, [sessions[name].run(None, dict(batch))[0] for batch in batches], outputs)
        data = path.with_name(f"{path.name}.data")
        rows.append(
            {
                "graph": name,
                "nodes": sum(operator_counts(ir.load(path)).values()),
                "megabytes": round((path.stat().st_size + data.stat().st_size) / 1e6, 1),
                "max_relative_error": result.max_relative_error,
                "milliseconds": {
                    size: round(1e3 * best, 2) for (graph, size), best in fastest.items() if graph == name
                },
            }
        )
    return rows


if __name__ == "__main__":
    main()
