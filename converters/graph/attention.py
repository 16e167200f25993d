"""Taking ONNX Runtime's fused attention apart, so that something can be added to each projection inside it.

``Attention`` holds the packed query, key and value weight. As three products before ``MultiHeadAttention``, which
takes the biases, it computes the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.graph.build import NodeList

__all__ = ["split_attention"]

_DOMAIN = "com.microsoft"
_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that mean the same on both operators."""


def split_attention(model: ir.Model) -> int:
    """Replace every ``Attention`` node that has only an additive mask, in place; return how many.

    Nodes with an integer mask, a past or a present, or without a bias, stay as they are.
    """
    opened = 0
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == _DOMAIN and _can_open(node):
            _open(model.graph, node)
            opened += 1
    return opened


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _can_open(node: ir.Node) -> bool:
    weight, bias = _input(node, 1), _input(node, 2)
    return (
        weight is not None
        and weight.const_value is not None
        and bias is not None
        and not any(_input(node, index) for index in (3, 4, 6))
        and len(node.outputs) == 1
    )


def _open(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, bias, mask = (_input(node, index) for index in (0, 1, 2, 5))
    assert x is not None and weight is not None and weight.const_value is not None  # noqa: S101 - _can_open has looked
    packed = weight.const_value.numpy()
    declared = node.attributes.get("qkv_hidden_sizes")
    sizes = list(declared.as_ints()) if declared else [packed.shape[1] // 3] * 3
    nodes = NodeList(graph, node.name or "attention")
    parts = NodeList(graph, weight.name or nodes.scope)  # layers that share the weight share its parts
    products, start = [], 0
    for name, size in zip(("query", "key", "value"), sizes, strict=True):
        part = parts.constant(f"{name}.weight", np.ascontiguousarray(packed[:, start : start + size]))
        product = nodes.op("MatMul", x, part, name=name)
        product.type = x.type
        if x.shape is not None:
            product.shape = ir.Shape([*list(x.shape)[:-1], size])
        products.append(product)
        start += size
    kept = {name: node.attributes[name] for name in _KEPT if name in node.attributes}
    new = nodes.op("MultiHeadAttention", *products, bias, None, mask, domain=_DOMAIN, attributes=kept, name="heads")
    attended = nodes.nodes[-1]
    attended.metadata_props.update(node.metadata_props)
    old = node.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, nodes.nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
