"""Tracing a PyTorch model with torch's ONNX exporter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError, require
from rmlora_deploy.exporter.quiet import quiet_libraries
from rmlora_deploy.exporter.trace_inputs import TraceInputs
from rmlora_deploy.exporter.translations import translations

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["DEFAULT_OPSET", "OUTPUT_NAME", "export_torch", "run_exporter"]

DEFAULT_OPSET = 20
"""Below opset 23 attention is exported as separate nodes, which onnxscript's fusions for ONNX Runtime recognize. The result
has fewer nodes than with opset 23's Attention operator, is no slower (docs/export.md), and has kernels on every provider."""

OUTPUT_NAME = "logits"


def export_torch(
    model: PreTrainedModel, inputs: TraceInputs, *, opset: int = DEFAULT_OPSET, outputs: Sequence[str] = (OUTPUT_NAME,)
) -> ir.Model:
    """Return the graph of ``model``, not optimized; initializers keep the names of the parameters.

    Args:
        model: in evaluation mode, adapter merged.
        inputs: example tensors and varying axes.
        opset: ONNX operator set.
        outputs: names of the first outputs.

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
    advice = (
        "Give a graph of the base that another exporter made (--onnx), or write a checkpoint with  rmlora-deploy merge  and run it "
        "with PyTorch."
    )
    return run_exporter(
        model, inputs.tensors, shapes, opset=opset, outputs=outputs, name=type(model).__name__, advice=advice
    )


def run_exporter(
    module: nn.Module,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Any],
    *,
    opset: int,
    outputs: Sequence[str],
    name: str,
    advice: str,
    inputs: Sequence[str] | None = None,
) -> ir.Model:
    """Return the graph of ``module``, not optimized; initializers keep the names of the parameters.

    Args:
        module: in evaluation mode.
        tensors: example arguments by name.
        shapes: the same with ``{axis: dimension}`` in place of tensors, for the axes that may vary.
        opset: ONNX operator set.
        outputs: names of the outputs.
        name: of the model's class, for the error.
        advice: what to do if it cannot be exported, for the error.
        inputs: names of the inputs; None for those of the arguments.

    Raises:
        InputError: the exporter cannot trace the model; the message quotes its reason.
    """
    import torch

    try:
        with quiet_libraries():
            program = torch.onnx.export(
                module,
                kwargs=dict(tensors),
                dynamo=True,
                dynamic_shapes=dict(shapes),
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                optimize=False,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise InputError(f"torch.onnx cannot export {name}: {_reason(error)}. {advice}") from error
    if program is None:
        raise InputError(f"torch.onnx made no graph of {name}.")
    _forget_machine(program.model)
    return program.model


def _reason(error: BaseException) -> str:
    """Return the first line of what led to an error of the exporter, whose own message only names its step."""
    while error.__cause__ is not None:
        error = error.__cause__
    if type(error).__name__ == "GuardOnDataDependentSymNode":  # torch's own message has its symbols, such as 4*u1 < 16
        return "its steps depend on the values of its inputs, not only on their sizes"
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return f"{next(filter(None, lines), '')[:300].rstrip('.')} ({type(error).__name__})"


def _forget_machine(model: ir.Model) -> None:
    """Remove the exporter's stack traces, which hold paths of this machine and make up half of a small file."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"):
                node.metadata_props.pop(key, None)
