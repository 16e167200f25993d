"""Opening ONNX Runtime's fused attention, so that the projection inside it can be quantised.

``Attention`` holds the packed query, key and value weight. Its quantised form, ``QAttention``, has no place for
the additive mask that exported encoders pass, and onnxruntime's quantiser would drop it. Split into a product,
a bias and ``MultiHeadAttention`` it computes the same, and the product is quantised like any other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["open_attention"]

_DOMAIN = "com.microsoft"
_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that mean the same on both operators."""


def open_attention(model: ir.Model) -> int:
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
    assert weight is not None and weight.const_value is not None  # noqa: S101 - _can_open has looked
    declared = node.attributes.get("qkv_hidden_sizes")
    sizes = list(declared.as_ints()) if declared else [weight.const_value.shape.numpy()[1] // 3] * 3
    widths = ir.val(f"{node.name}_widths", const_value=ir.tensor(np.array(sizes, np.int64), name=f"{node.name}_widths"))
    graph.register_initializer(widths)
    product = ir.node("MatMul", [x, weight], name=f"{node.name}_qkv")
    biased = ir.node("Add", [product.outputs[0], bias], name=f"{node.name}_bias")
    split = ir.node("Split", [biased.outputs[0], widths], {"axis": -1}, num_outputs=3, name=f"{node.name}_split")
    attended = ir.node(
        "MultiHeadAttention",
        [*split.outputs, None, None, mask],
        {name: node.attributes[name] for name in _KEPT if name in node.attributes},
        domain=_DOMAIN,
        name=f"{node.name}_heads",
    )
    attended.metadata_props.update(node.metadata_props)
    for part in (product, biased, split):
        for number, value in enumerate(part.outputs):
            value.name = f"{part.name}_{number}"
    old, new = node.outputs[0], attended.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, [product, biased, split, attended])
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
