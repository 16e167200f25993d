"""Tracing a PyTorch model with torch's ONNX exporter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError, require
from rmlora_deploy.exporter.quiet import quiet_libraries
from rmlora_deploy.exporter.trace_inputs import TraceInputs
from rmlora_deploy.exporter.translations import translations

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

__all__ = ["DEFAULT_OPSET", "OUTPUT_NAME", "export_torch"]

DEFAULT_OPSET = 20
"""Below opset 23 attention is exported as separate nodes, which onnxscript's fusions for ONNX Runtime recognize. The result
has fewer nodes than with opset 23's Attention operator, is no slower (docs/export.md), and has kernels on every provider."""

OUTPUT_NAME = "logits"


def export_torch(
    model: PreTrainedModel, inputs: TraceInputs, *, opset: int = DEFAULT_OPSET, output: str = OUTPUT_NAME
) -> ir.Model:
    """Return the graph of ``model``, not optimized; initializers keep the names of the parameters.

    Args:
        model: in evaluation mode, adapter merged.
        inputs: example tensors and varying axes.
        opset: ONNX operator set.
        output: name of the first output.

    Raises:
        InputError: the exporter cannot trace the model; the message quotes its reason.
    """
    require("onnxscript", "export")
    import torch

    model.config.use_cache = False
    dimensions: dict[str, Any] = {}
    shapes = {
        name: {axis: dimensions.setdefault(label, torch.export.Dim(label)) for axis, label in axes.items()}
        for name, axes in inputs.axes.items()
    }
    try:
        with quiet_libraries():
            program = torch.onnx.export(
                model,
                kwargs=inputs.tensors,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=[output],
                opset_version=opset,
                optimize=False,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise InputError(f"torch.onnx cannot export {type(model).__name__}: {_reason(error)}") from error
    if program is None:
        raise InputError(f"torch.onnx made no graph of {type(model).__name__}.")
    _forget_machine(program.model)
    return program.model


def _reason(error: BaseException) -> str:
    """Return the first line of what led to an error of the exporter, whose own message only names its step."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return f"{next(filter(None, lines), type(error).__name__)[:300]} ({type(error).__name__})"


def _forget_machine(model: ir.Model) -> None:
    """Remove the exporter's stack traces, which hold paths of this machine and make up half of a small file."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"):
                node.metadata_props.pop(key, None)
