"""Where in a graph a module's input and output are, found from its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.uses import uses_of
from rmlora_converters.graph.locate.weights import WeightLocation

__all__ = ["Consumer", "find_consumers", "head_consumer"]


@dataclass(frozen=True)
class Consumer:
    """One place that computes with a weight."""

    how: Literal["product", "lookup", "convolution"]
    node: ir.Node
    """The operator that reads the weight."""
    x: ir.Value
    """What the module reads."""
    y: ir.Value
    """What the module gives: behind its bias where that is an addition of its own, so that onnxruntime still fuses the
    product with it; before the bias where an operator behind has already taken it in."""
    bias: ir.Value | None
    """The bias, where it is an operand of the operator or of the addition behind."""


def find_consumers(graph: ir.Graph, location: WeightLocation) -> list[Consumer]:
    """Return every place that computes with the weight at ``place``; a module that is called twice has two.

    Raises:
        AdapterError: an operator that cannot be adapted reads the weight.
    """
    weight = graph.initializers[location.initializer]
    consumers = [_site(node, index, location) for node, index in uses_of(weight)]
    if not consumers:
        raise AdapterError(
            f"Nothing in the graph reads '{location.initializer}', the weight of '{location.parameter}'."
        )
    return consumers


def head_consumer(graph: ir.Graph, location: WeightLocation) -> Consumer:
    """Return the one product that computes with the weight of a head.

    Raises:
        AdapterError: there are several, or it is no product.
    """
    consumers = find_consumers(graph, location)
    if len(consumers) != 1 or consumers[0].how != "product":
        path = location.parameter.removesuffix(".weight")
        raise AdapterError(
            f"The head '{path}' is not a single product in the graph: merge the adapter into the checkpoint."
        )
    return consumers[0]


def _site(node: ir.Node, index: int, location: WeightLocation) -> Consumer:
    first = node.inputs[0]
    if node.op_type in ("MatMul", "DynamicQuantizeMatMul", "MatMulNBits") and index == 1 and first is not None:
        return _with_bias(node, first, node.outputs[0])
    if node.op_type == "Gemm" and index == 1 and first is not None and _plain_gemm(node):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Consumer("product", node, first, node.outputs[0], bias)
    if node.op_type == "MatMulInteger" and index == 1 and first is not None:
        return _integer_product(node, first, location)
    if node.op_type == "Gather" and index == 0 and node.inputs[1] is not None:
        return Consumer("lookup", node, node.inputs[1], _dequantized(node.outputs[0]), None)
    if node.op_type == "Conv" and index == 1 and first is not None and _patches(node):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Consumer("convolution", node, first, node.outputs[0], bias)
    raise AdapterError(
        f"'{location.parameter}' is read by the operator {node.op_type} ('{node.name}'), to which no branch can be added: "
        "export the graph with a higher-level exporter option off (no fused attention with masks or caches), or leave "
        "that module out of the adapter."
    )


def _plain_gemm(node: ir.Node) -> bool:
    return node.attributes.get_float("alpha", 1.0) == 1.0 and not node.attributes.get_int("transA", 0)


def _patches(node: ir.Node) -> bool:
    """Whether a convolution cuts its input into patches that do not overlap: stride = kernel, nothing padded."""
    weight = node.inputs[1]
    shape = weight.const_value.shape.numpy() if weight is not None and weight.const_value is not None else None
    kernel = (
        list(node.attributes["kernel_shape"].as_ints()) if "kernel_shape" in node.attributes else list(shape or ())[2:]
    )
    given = {
        name: list(node.attributes[name].as_ints())
        for name in ("strides", "pads", "dilations")
        if name in node.attributes
    }
    return (
        given.get("strides", [1] * len(kernel)) == kernel
        and not any(given.get("pads", []))
        and all(step == 1 for step in given.get("dilations", []))
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _integer_product(node: ir.Node, quantized: ir.Value, location: WeightLocation) -> Consumer:
    """Onnxruntime's dynamic quantization: DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales."""
    before = quantized.producer()
    value: ir.Value | None = node.outputs[0]
    for expected in ("Cast", "Mul"):
        user = _only_user(value)
        value = user.outputs[0] if user is not None and user.op_type == expected else None
        if value is None:
            break
    source = before.inputs[0] if before is not None and before.op_type == "DynamicQuantizeLinear" else None
    if source is None or value is None:
        raise AdapterError(
            f"The quantized product '{node.name}' of '{location.parameter}' is of a form that is not known."
        )
    return _with_bias(node, source, value)


def _with_bias(node: ir.Node, x: ir.Value, y: ir.Value) -> Consumer:
    """Step over an addition of a constant vector."""
    user = _only_user(y)
    if user is not None and user.op_type == "Add" and not y.is_graph_output():
        other = next((value for value in user.inputs if value is not y), None)
        if other is not None and other.const_value is not None and other.const_value.shape.rank() == 1:
            return Consumer("product", node, x, user.outputs[0], other)
    return Consumer("product", node, x, y, None)


def _dequantized(value: ir.Value) -> ir.Value:
    user = _only_user(value)
    return user.outputs[0] if user is not None and user.op_type == "DequantizeLinear" else value


def _only_user(value: ir.Value | None) -> ir.Node | None:
    uses = list(value.uses()) if value is not None else []
    return uses[0].node if len(uses) == 1 else None
