"""Computes products of the same input, whose weights are quantized in blocks, in one ``MatMulNBits``.

A language model's step is short, and every product waits for all threads at its end. Gate and up projections read the same
input, so one product computes both and a ``Split`` takes them apart; every output is computed as before, to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["pack_products"]

_DOMAIN = "com.microsoft"
_ORDER_INPUT = 4
"""``g_idx``, which reorders the inputs of a product: such products are left alone."""


def pack_products(model: ir.Model) -> int:
    """Join the ``MatMulNBits`` that have the same input and the same scheme, in place; return how many were joined."""
    graph = model.graph
    groups: dict[Any, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.op_type == "MatMulNBits" and _is_joined(node):
            groups[node.inputs[0], _scheme(node)].append(node)
    found = [nodes for nodes in groups.values() if len(nodes) > 1]
    for nodes in found:
        _join(graph, nodes)
    return sum(map(len, found))


def _is_joined(node: ir.Node) -> bool:
    """Return True if the weights are constants of this product alone, and its output is none of the graph's."""
    weights = [value for value in node.inputs[1:] if value is not None]
    own = all(value.is_initializer() and value.const_value is not None and len(value.uses()) == 1 for value in weights)
    ordered = len(node.inputs) > _ORDER_INPUT and node.inputs[_ORDER_INPUT] is not None
    return own and not ordered and not node.outputs[0].is_graph_output()


def _scheme(node: ir.Node) -> tuple[Any, ...]:
    """Return what two products must share: all attributes but the number of outputs, and which weights there are."""
    attributes = tuple(sorted((name, value.value) for name, value in node.attributes.items() if name != "N"))
    weights = tuple(
        None if value is None or value.const_value is None else (value.dtype, value.const_value.shape.rank())
        for value in node.inputs[1:]
    )
    return attributes, weights


def _join(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    first = nodes[0]
    tape = Tape(graph, f"{first.name}/packed")
    sizes = [node.attributes["N"].as_int() for node in nodes]
    weights = [_side_by_side(graph, [node.inputs[index] for node in nodes]) for index in range(1, len(first.inputs))]
    attributes = {name: value.value for name, value in first.attributes.items()}
    together = tape.op(
        "MatMulNBits",
        first.inputs[0],
        *weights,
        domain=_DOMAIN,
        attributes={**attributes, "N": sum(sizes)},
        name="product",
    )
    y = first.outputs[0]
    together.type = y.type
    together.shape = None if y.shape is None else ir.Shape([*list(y.shape)[:-1], sum(sizes)])
    parts = tape.split(together, sizes)
    graph.insert_before(first, tape.nodes)
    replaced = [
        value for node in nodes for value in node.inputs[1:] if value is not None
    ]  # a removed node has no inputs
    for node, part in zip(nodes, parts, strict=True):
        old = node.outputs[0]
        name, part.type, part.shape = str(old.name), old.type, old.shape
        replace_uses(graph, old, part, name=f"{name}/replaced")
        graph.remove(node, safe=True)
        part.name = name
    for value in replaced:
        graph.initializers.pop(str(value.name), None)


def _side_by_side(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value | None:
    """Return a weight with the outputs of all ``values``, which is read when it is needed."""
    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    first = values[0]
    if first is None or not tensors:
        return None
    name = f"{first.name}.packed"
    sizes = [tensor.shape.numpy() for tensor in tensors]
    shape = ir.Shape([sum(size[0] for size in sizes), *sizes[0][1:]])
    tensor = ir.LazyTensor(partial(_joined, name, tensors), dtype=tensors[0].dtype, shape=shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _joined(name: str, tensors: Sequence[ir.TensorProtocol]) -> ir.TensorProtocol:
    return ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors]), name=name)
