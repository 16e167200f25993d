"""From a PyTorch model to its graph, traced and fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.pooling import Pooling
from rmlora.tasks import Task
from rmlora_converters.graph.passes.pooling import TOKENS_NAME, insert_pooling, keep_answer
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.exporter.optimize import Optimized, optimize
from rmlora_deploy.exporter.torch_export import DEFAULT_OPSET, OUTPUT_NAME, export_torch
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from rmlora_deploy.runtime.outputs import Arrays
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs

__all__ = ["TracedGraph", "trace_graph"]


@dataclass(frozen=True)
class TracedGraph:
    """A graph and the inputs it was tried on."""

    optimized: Optimized
    batches: list[Arrays]


def trace_graph(
    model: Any, processor: Any, task: Task, *, max_length: int | None, exporter: str, opset: int | None, scratch: Path,
    on_progress: Callable[[str], None], pooling: Pooling | None = None,
) -> TracedGraph:  # fmt: skip
    """Export ``model`` and fuse the graph for ONNX Runtime.

    Args:
        model: PyTorch model in evaluation mode.
        processor: its tokenizer or image processor.
        task: decides inputs.
        max_length: tokens that texts are cut to.
        exporter: ``torch`` or ``optimum``.
        opset: ONNX operator set; None takes the default.
        scratch: directory for temporary files.
        on_progress: called with a line before every step.
        pooling: how the tokens' vectors become one, for tasks that answer with vectors.

    Raises:
        InputError: the model cannot be exported.
        DependencyError: the exporter is not installed.
    """
    inputs = trace_inputs(task, model.config, processor)
    if exporter == "optimum":
        from rmlora_deploy.exporter.optimum_export import export_optimum

        on_progress("exporting with Optimum")
        graph = export_optimum(model, processor, task, opset=opset or DEFAULT_OPSET)
    else:
        on_progress("exporting with torch.onnx")
        output = OUTPUT_NAME if pooling is None else TOKENS_NAME
        graph = export_torch(model, inputs, opset=opset or DEFAULT_OPSET, output=output)
    if pooling is not None:
        keep_answer(graph)
    names = [value.name or "" for value in graph.graph.inputs]
    preprocessor = Preprocessor(task, processor, max_length, tuple(names))
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None))
    on_progress("optimizing for ONNX Runtime")
    optimized = optimize(graph, batches, scratch)
    if pooling is not None:
        insert_pooling(optimized.model, pooling)
    return TracedGraph(optimized, batches)
