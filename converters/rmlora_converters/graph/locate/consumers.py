"""Finds the nodes that compute with a weight, and with them the input and output of its module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.uses import stored_value, uses_of
from rmlora_converters.graph.locate.weights import WeightLocation

__all__ = ["Consumer", "find_consumers", "head_consumer"]


@dataclass(frozen=True)
class Consumer:
    """A node that computes with a weight, and the values around it."""

    how: Literal["product", "lookup", "convolution"]
    node: ir.Node
    """The operator that takes the weight as an input."""
    x: ir.Value
    """Input of the module."""
    y: ir.Value
    """Output of the module. If the bias is an addition of its own, this is the sum, so that onnxruntime still fuses product
    and addition; if a later operator has absorbed the bias, this is the product without it."""
    bias: ir.Value | None
    """The bias, if it is an operand of the operator or of the addition after it."""


def find_consumers(graph: ir.Graph, location: WeightLocation) -> list[Consumer]:
    """Return every consumer of the weight at ``location``; a module that is called twice has two.

    Raises:
        AdapterError: the weight has no consumer, or one that cannot be adapted.
    """
    weight = graph.initializers[location.initializer]
    consumers = [_consumer(node, index, location) for node, index in uses_of(weight)]
    if not consumers:
        raise AdapterError(f"Nothing in the graph uses '{location.initializer}', the weight of '{location.parameter}'.")
    if inner := next((item.node for item in consumers if item.node.graph is not graph), None):
        raise AdapterError(
            f"'{location.parameter}' is used inside an If or a Loop ('{inner.name}'), to which no branch can be added: export the graph "
            "without control flow, or merge the adapter."
        )
    return consumers


def head_consumer(graph: ir.Graph, location: WeightLocation) -> Consumer:
    """Return the only consumer of the weight of a head, a product.

    Raises:
        AdapterError: there are several, or it is not a product.
    """
    consumers = find_consumers(graph, location)
    if len(consumers) != 1 or consumers[0].how != "product":
        raise AdapterError(
            f"The head '{location.module}' is not a single product in the graph: merge the adapter into the checkpoint."
        )
    return consumers[0]


def _consumer(node: ir.Node, index: int, location: WeightLocation) -> Consumer:
    first = node.inputs[0]
    if node.op_type in ("MatMul", "DynamicQuantizeMatMul", "MatMulNBits") and index == 1 and first is not None:
        return _with_bias(node, first, node.outputs[0])
    if node.op_type == "Gemm" and index == 1 and first is not None and _is_plain_gemm(node):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Consumer("product", node, first, node.outputs[0], bias)
    if node.op_type == "MatMulInteger" and index == 1 and first is not None:
        return _integer_product(node, first, location)
    if node.op_type == "Gather" and index == 0 and node.inputs[1] is not None:
        return Consumer("lookup", node, node.inputs[1], _dequantized(node.outputs[0]), None)
    if node.op_type == "Conv" and index == 1 and first is not None and _is_patch_convolution(node):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Consumer("convolution", node, first, node.outputs[0], bias)
    if node.op_type == "DequantizeLinear":
        raise AdapterError(
            f"'{location.parameter}' is quantized statically ('{node.name}'): insert branches into the floating-point graph "
            "this one was made from; --precision int8 quantizes the result and leaves the branches in float."
        )
    if node.op_type == "Conv":
        raise AdapterError(
            f"'{location.parameter}' is a convolution whose windows overlap ('{node.name}'), to which no branch can be added: merge the "
            "adapter, or leave that module out of it."
        )
    raise AdapterError(
        f"'{location.parameter}' is used by the operator {node.op_type} ('{node.name}'), to which no branch can be added: "
        "export the graph without fused operators (such as attention with integer masks or caches), or leave that module "
        "out of the adapter."
    )


def _is_plain_gemm(node: ir.Node) -> bool:
    return node.attributes.get_float("alpha", 1.0) == 1.0 and not node.attributes.get_int("transA", 0)


def _is_patch_convolution(node: ir.Node) -> bool:
    """Return True if a convolution cuts its input into patches that do not overlap: stride = kernel, no padding."""
    weight = node.inputs[1]
    shape = weight.const_value.shape.numpy() if weight is not None and weight.const_value is not None else None
    kernel = (
        list(node.attributes["kernel_shape"].as_ints()) if "kernel_shape" in node.attributes else list(shape or ())[2:]
    )
    attributes = {
        name: list(node.attributes[name].as_ints())
        for name in ("strides", "pads", "dilations")
        if name in node.attributes
    }
    return (
        attributes.get("strides", [1] * len(kernel)) == kernel
        and not any(attributes.get("pads", []))
        and all(step == 1 for step in attributes.get("dilations", []))
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _integer_product(node: ir.Node, quantized: ir.Value, location: WeightLocation) -> Consumer:
    """Return the consumer that onnxruntime's dynamic quantization makes.

    Its nodes are DynamicQuantizeLinear → MatMulInteger → Cast → Mul by both scales.
    """
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
            f"The quantized product '{node.name}' of '{location.parameter}' has an unknown form: start from "
            "the graph before quantization."
        )
    return _with_bias(node, source, value)


def _with_bias(node: ir.Node, x: ir.Value, y: ir.Value) -> Consumer:
    """Return the consumer of a product, including the addition of a constant vector that follows it, if any."""
    user = _only_user(y)
    if user is not None and user.op_type == "Add" and not y.is_graph_output():
        other = next((value for value in user.inputs if value is not y), None)
        if other is not None and _is_vector(other):
            return Consumer("product", node, x, user.outputs[0], other)
    return Consumer("product", node, x, y, None)


def _is_vector(value: ir.Value) -> bool:
    """Return True for a constant that is the same for every row and token: ``[out]``, perhaps after axes of size 1."""
    content = stored_value(value).const_value
    return content is not None and content.shape.rank() > 0 and all(size == 1 for size in content.shape.numpy()[:-1])


def _dequantized(value: ir.Value) -> ir.Value:
    user = _only_user(value)
    return user.outputs[0] if user is not None and user.op_type == "DequantizeLinear" else value


def _only_user(value: ir.Value | None) -> ir.Node | None:
    uses = list(value.uses()) if value is not None else []
    return uses[0].node if len(uses) == 1 else None
