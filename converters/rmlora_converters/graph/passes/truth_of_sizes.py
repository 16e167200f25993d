"""Writes "1 if an axis has any elements" without a cast to truth values and back, which OpenVINO 2025.4 leaves out.

The branch pass writes it as two casts, which every operator set has (:mod:`~rmlora_converters.graph.passes.replace_head`).
"""

from __future__ import annotations

import onnx_ir as ir

from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["replace_truth_casts"]

_OPSET = 12
"""The first operator set in which ``Min`` takes whole numbers."""


def replace_truth_casts(model: ir.Model) -> int:
    """Replace casts of a size to a truth value and back to a number with ``Min(size, 1)``, in place; return how many."""
    if model.graph.opset_imports.get("", 0) < _OPSET:
        return 0
    found = [(node, size) for node in model.graph if (size := _size(node)) is not None]
    for node, size in found:
        tape = Tape(model.graph, f"{node.name or node.outputs[0].name}/truth")
        replace_node(model.graph, node, tape, tape.op("Min", size, tape.constant("one", [1])))
    return len(found)


def _size(node: ir.Node) -> ir.Value | None:
    """Return the size whose truth ``node`` gives as an int64; None if it does something else."""
    if not _casts(node, ir.DataType.INT64):
        return None
    truth = node.inputs[0].producer() if node.inputs[0] is not None else None
    if truth is None or not _casts(truth, ir.DataType.BOOL):
        return None
    size = truth.inputs[0]
    source = size.producer() if size is not None else None
    return size if source is not None and source.op_type == "Shape" else None


def _casts(node: ir.Node, kind: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.attributes.get_int("to", 0) == int(kind)
