"""Adds the optional input ``logits_start``: the first position of a language model whose logits are computed.

The output layer is the largest product of a small model. To read a prompt, only the last position's logits are needed; to
judge a text, those of all positions. So the graph computes all by default, and callers may ask for fewer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.passes.optional_input import add_optional_input
from rmlora_converters.graph.passes.rewire import producer_of
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["LOGITS_START", "add_logits_start"]

LOGITS_START = "logits_start"
"""Name of the input, int64 ``[1]``; negative numbers count from the end, as in ``Slice``."""

_SCOPE = "rmlora/logits"
_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm", "FusedMatMul")
_AFTER = ("Add", "Mul", "Div", "Tanh", "Cast", "Where", "Sub")
"""Operators between the product of the output layer and the logits: bias, scaling, and soft or hard limits."""


def add_logits_start(model: ir.Model, output: str = "logits") -> None:
    """Put the input in front of the output layer, in place.

    Args:
        model: a decoder whose output ``[rows, positions, vocabulary]`` is called ``output``.
        output: name of the logits.

    Raises:
        AdapterError: the output is not made by a product, or the graph has the input already.
    """
    graph = model.graph
    if LOGITS_START in graph.initializers:
        raise AdapterError(f"The graph has an input '{LOGITS_START}' already: give the exporter's own graph.")
    product = _output_layer(graph, output)
    hidden = product.inputs[0]
    if hidden is None:
        raise AdapterError(f"The product '{product.name}' has no input: the graph is damaged.")
    readers = list(hidden.uses())  # the product, and its branch if the output layer has one
    nodes = Tape(graph, _SCOPE)
    start = add_optional_input(graph, LOGITS_START, [1], np.zeros(1, np.int64))
    end = nodes.constant("end", [np.iinfo(np.int64).max])
    kept = nodes.op("Slice", hidden, start, end, nodes.constant("axis", [1]), name="kept")
    kept.type = hidden.type
    kept.shape = _with_positions(hidden.shape)
    graph.insert_after(producer_of(hidden), nodes.nodes)
    for reader in readers:
        reader.node.replace_input_with(reader.idx, kept)
    value: ir.Value | None = product.outputs[0]
    while value is not None:
        value.shape = _with_positions(value.shape)
        users = [use.node for use in value.uses()]
        value = users[0].outputs[0] if len(users) >= 1 and users[0].op_type in _AFTER else None


def _output_layer(graph: ir.Graph, output: str) -> ir.Node:
    """Return the product that makes the logits, looking back through what follows it."""
    value = next((item for item in graph.outputs if item.name == output), None)
    if value is None:
        raise AdapterError(f"The graph has no output '{output}': it is not a language model's.")
    node = producer_of(value)
    while node.op_type in _AFTER and node.inputs[0] is not None:
        node = producer_of(node.inputs[0])
    if node.op_type not in _PRODUCTS:
        raise AdapterError(f"The logits are made by {node.op_type} ('{node.name}'), not by a product.")
    return node


def _with_positions(shape: ir.Shape | None) -> ir.Shape | None:
    """Return the shape with another name for the number of positions, which is no longer that of the input."""
    if shape is None or shape.rank() != 3:
        return shape
    return ir.Shape([shape[0], "logits_length", shape[2]])
