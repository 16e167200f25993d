"""From a PyTorch model to a traced and optimized graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.inputs import Arrays
from rmlora_converters.graph.passes.join_outputs import join_outputs
from rmlora_converters.graph.passes.pooling import TOKENS_NAME, insert_pooling, keep_answer
from rmlora_deploy.exporter.optimize import Optimized, optimize
from rmlora_deploy.exporter.plan import ExportPlan
from rmlora_deploy.exporter.shifted_positions import shifted_positions
from rmlora_deploy.exporter.torch_export import DEFAULT_OPSET, OUTPUT_NAME, export_torch
from rmlora_deploy.exporter.trace_inputs import TraceInputs, trace_inputs
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs

__all__ = ["TracedGraph", "trace_graph"]


@dataclass(frozen=True)
class TracedGraph:
    """A graph and the sample batches it was run on."""

    optimized: Optimized
    batches: list[Arrays]
    parameters: frozenset[str]
    """Parameters that the output depends on; the optimizer may have computed with some of them."""


def trace_graph(model: Any, plan: ExportPlan, *, scratch: Path) -> TracedGraph:
    """Export ``model`` with torch's or Optimum's exporter and optimize the graph for ONNX Runtime.

    Args:
        model: PyTorch model in evaluation mode.
        plan: of the export; decides exporter, operator set, inputs and pooling.
        scratch: directory for temporary files.

    Raises:
        InputError: the model cannot be exported.
        DependencyError: the exporter is not installed.
    """
    pooling = plan.pooling
    inputs = trace_inputs(plan.task, model.config, plan.processor)
    taken = signature(
        model.forward
    ).parameters  # a tokenizer may make more, such as token types for a model without them
    inputs = TraceInputs(
        {name: tensor for name, tensor in inputs.tensors.items() if name in taken},
        {name: axes for name, axes in inputs.axes.items() if name in taken},
    )
    with shifted_positions(model):
        graph = _export(model, inputs, plan)
    if pooling is not None:
        keep_answer(graph, pooling)
    RemoveUnusedNodesPass()(graph)
    parameters = frozenset(name for name, value in graph.graph.initializers.items() if value.uses())
    preprocessor = plan.preprocessor(value.name or "" for value in graph.graph.inputs)
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None, plan.input_forms))
    plan.on_progress("optimizing for ONNX Runtime")
    optimized = optimize(graph, batches, scratch)
    if pooling is not None:
        insert_pooling(optimized.model, pooling, padded=plan.task.inputs.varies_in_length)
    if plan.task.outputs.graph_outputs is not None:
        join_outputs(optimized.model, plan.task.outputs.graph_outputs, name=OUTPUT_NAME)
    return TracedGraph(optimized, batches, parameters)


def _export(model: Any, inputs: TraceInputs, plan: ExportPlan) -> ir.Model:
    """Return the graph as the exporter of the settings gives it."""
    settings = plan.settings
    opset = settings.opset or DEFAULT_OPSET
    if settings.exporter == "optimum":
        from rmlora_deploy.exporter.optimum_export import export_optimum

        plan.on_progress("exporting with Optimum")
        return export_optimum(
            model, plan.processor, plan.task, opset=opset, trust_remote_code=settings.trust_remote_code
        )
    plan.on_progress("exporting with torch.onnx")
    names = plan.task.outputs.graph_outputs or (_tensor_names(model, inputs) if plan.pooling else (OUTPUT_NAME,))
    return export_torch(model, inputs, opset=opset, outputs=names)


def _tensor_names(model: Any, inputs: TraceInputs) -> tuple[str, ...]:
    """Return what ``model`` calls its first outputs, as far as they are tensors; token vectors if they have no names."""
    import torch

    with torch.no_grad():
        output = model(**inputs.tensors)
    named = output.items() if isinstance(output, Mapping) else ()
    return tuple(name for name, _ in takewhile(lambda item: isinstance(item[1], torch.Tensor), named)) or (TOKENS_NAME,)
