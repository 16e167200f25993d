"""ONNX exports of the tiny models, in the forms that different exporters give them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from rmlora.tasks import get_task
from rmlora_converters.graph.files.model_file import save_model
from rmlora_deploy.exporter.optimize import optimize
from rmlora_deploy.exporter.torch_export import export_torch
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from tests.helpers.bundles import make_sources
from tests.helpers.models import ARCHITECTURES, build

__all__ = ["anonymous", "export", "with_bias"]


def with_bias(name: str) -> PreTrainedModel:
    """Return the tiny model with a head bias other than zero: the exporter would leave out a zero bias."""
    model = build(name)
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if parameter.startswith("classifier") and parameter.endswith("bias"):
                values.add_(0.1)
    return model


@cache
def _traced(name: str) -> bytes:
    """Return the tiny model exported by torch, serialized; kept, because tracing takes longer than most tests."""
    model = with_bias(name)
    task = get_task(ARCHITECTURES[name].task or "")
    with TemporaryDirectory() as directory:
        base, _ = make_sources(name, Path(directory))
        inputs = trace_inputs(task, model.config, task.inputs.load_processor(base))
    serialized: bytes = ir.to_proto(export_torch(model, inputs, opset=20)).SerializeToString()
    return serialized


def export(name: str, target: Path, *, optimized: bool) -> Path:
    """Export the tiny model with its head and without an adapter."""
    graph = ir.from_proto(onnx.load_from_string(_traced(name)))
    if optimized:
        names = {value.name for value in graph.graph.inputs}
        batch = {key: value.numpy() for key, value in ARCHITECTURES[name].inputs().items() if key in names}
        graph = optimize(graph, [batch], target.parent).model
    save_model(graph, target)
    return target


def anonymous(path: Path) -> Path:
    """Replace the names of all weights of a graph by numbers."""
    model = ir.load(path)
    for number, (name, value) in enumerate(list(model.graph.initializers.items())):
        model.graph.initializers.pop(name)
        value.name = f"weight_{number}"
        model.graph.initializers[value.name] = value
    save_model(model, path)
    return path
