"""Opening ONNX Runtime's fused attention, so that the projections inside it can be quantised or adapted.

``Attention`` holds the packed query, key and value weight. Its quantised form, ``QAttention``, has no place for
the additive mask that exported encoders pass, and onnxruntime's quantiser would drop it; and nothing can be added to
one projection. With the projections before ``MultiHeadAttention`` it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from converters.graph.build import NodeList
from converters.graph.rewire import replace_node

__all__ = ["open_attention", "split_attention"]

_DOMAIN = "com.microsoft"
_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that mean the same on both operators."""

Projections: TypeAlias = Callable[[NodeList, ir.Node, Sequence[int]], list[ir.Value | None]]
"""Makes what ``MultiHeadAttention`` takes first: query, key, value and, where it is not in them yet, the bias."""


def open_attention(model: ir.Model) -> int:
    """Replace every ``Attention`` node that has only an additive mask, in place; return how many.

    Its projections become one product and one bias, which a quantiser takes like any other. Nodes with an integer
    mask, a past or a present, or without a bias, stay as they are.
    """
    return _open_all(model.graph, _one_product)


def split_attention(model: ir.Model) -> int:
    """Do as :func:`open_attention`, but with a product for each projection, to which something can be added."""
    return _open_all(model.graph, _three_products)


def _open_all(graph: ir.Graph, projections: Projections) -> int:
    opened = [node for node in graph if node.op_type == "Attention" and node.domain == _DOMAIN and _can_open(node)]
    for node in opened:
        _open(graph, node, projections)
    return len(opened)


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


def _open(graph: ir.Graph, node: ir.Node, projections: Projections) -> None:
    declared = node.attributes.get("qkv_hidden_sizes")
    sizes = list(declared.as_ints()) if declared else [_packed(node).shape[1] // 3] * 3
    nodes = NodeList(graph, node.name or "attention")
    kept = {name: node.attributes[name] for name in _KEPT if name in node.attributes}
    query, key, value, bias = projections(nodes, node, sizes)
    inputs = (query, key, value, bias, None, _input(node, 5))
    new = nodes.op("MultiHeadAttention", *inputs, domain=_DOMAIN, attributes=kept, name="heads")
    nodes.nodes[-1].metadata_props.update(node.metadata_props)
    replace_node(graph, node, nodes, new)


def _packed(node: ir.Node) -> np.ndarray:
    weight = _input(node, 1)
    assert weight is not None and weight.const_value is not None  # noqa: S101 - _can_open has looked
    return weight.const_value.numpy()


def _one_product(nodes: NodeList, node: ir.Node, sizes: Sequence[int]) -> list[ir.Value | None]:
    product = nodes.op("MatMul", _input(node, 0), _input(node, 1), name="qkv")
    return [*nodes.split(nodes.op("Add", product, _input(node, 2), name="bias"), sizes), None]


def _three_products(nodes: NodeList, node: ir.Node, sizes: Sequence[int]) -> list[ir.Value | None]:
    x, weight, bias = (_input(node, index) for index in range(3))
    assert x is not None and weight is not None  # noqa: S101 - _can_open has looked
    parts = NodeList(nodes.graph, weight.name or nodes.scope)  # layers that share the weight share its parts
    packed = _packed(node)
    starts = np.cumsum([0, *sizes[:-1]])
    products: list[ir.Value | None] = []
    for name, start, size in zip(("query", "key", "value"), starts, sizes, strict=True):
        part = parts.constant(f"{name}.weight", np.ascontiguousarray(packed[:, start : start + size]))
        product = nodes.op("MatMul", x, part, name=name)
        product.type = x.type
        if x.shape is not None:
            product.shape = ir.Shape([*list(x.shape)[:-1], size])
        products.append(product)
    return [*products, bias]
