"""Opens ONNX Runtime's fused attention, so that the projections inside it can be quantized or adapted.

``Attention`` contains the packed query, key and value weight, so nothing can be added to one projection. Its quantized form,
``QAttention``, has no input for the additive mask that exported encoders pass, and onnxruntime's quantizer would drop that
mask. Projections followed by ``MultiHeadAttention``, or by ONNX's own ``Attention``, compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["open_attention", "open_attention_per_projection"]

_DOMAIN = "com.microsoft"
_SHARED_ATTRIBUTES = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that mean the same on ``Attention`` and ``MultiHeadAttention``."""
_OPSET, _IR_VERSION = 23, 11
"""The operator set that introduced ONNX's ``Attention``, and the IR version that goes with it."""
_OLDEST_OPSET = 20
"""The oldest operator set that can be raised to :data:`_OPSET`: of what exporters write, only the meaning of
``GroupNormalization`` differs between the two."""

_PADDING_MASK = 3
"""Input of ``Attention`` with 1 for every token that counts and 0 for padding; ``MultiHeadAttention`` takes it, too."""

Replacement: TypeAlias = Callable[[Tape, ir.Node, Sequence[int]], ir.Value]
"""Makes the nodes that replace a node, given the widths of query, key and value, and returns their output."""


def open_attention(model: ir.Model) -> int:
    """Replace every ``Attention`` node, in place; return how many.

    Its projections become one product and one bias, which a quantizer handles like any others. Nodes with past or present,
    without a bias, with rotary positions, or with a mask that is neither additive nor ``[batch, tokens]`` stay as they are.
    """
    return _open_all(model.graph, _nodes(model.graph), _one_product)


def open_attention_per_projection(model: ir.Model) -> int:
    """Like :func:`open_attention`, but make one product per projection, to which branches can be added.

    The graph is raised to operator set 23 if possible: on CPUs its ``Attention`` is faster than ``MultiHeadAttention``.
    """
    found = _nodes(model.graph)
    if not found or not _can_be_standard(model, found):
        return _open_all(model.graph, found, _three_products)
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], _OPSET)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return _open_all(model.graph, found, _standard)


def _can_be_standard(model: ir.Model, found: Sequence[ir.Node]) -> bool:
    """Return True if the graph can have the operator set with ``Attention``, and every bias is constant and can be split."""
    version = model.graph.opset_imports.get("", 0)
    can_raise = version >= _OLDEST_OPSET and not any(node.op_type == "GroupNormalization" for node in model.graph)
    biases = (_input(node, 2) for node in found)
    additive = all(_input(node, _PADDING_MASK) is None for node in found)
    return (
        (can_raise or version >= _OPSET)
        and additive
        and all(bias is not None and bias.const_value is not None for bias in biases)
    )


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "Attention" and node.domain == _DOMAIN and _can_open(node)]


def _open_all(graph: ir.Graph, found: Sequence[ir.Node], replacement: Replacement) -> int:
    for node in found:
        declared = node.attributes.get("qkv_hidden_sizes")
        sizes = list(declared.as_ints()) if declared else [_constant(node, 1).shape[1] // 3] * 3
        nodes = Tape(graph, node.name or "attention")
        new = replacement(nodes, node, sizes)
        nodes.nodes[-1].metadata_props.update(node.metadata_props)
        replace_node(graph, node, nodes, new)
    return len(found)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _can_open(node: ir.Node) -> bool:
    weight, bias = _input(node, 1), _input(node, 2)
    return (
        weight is not None
        and weight.const_value is not None
        and bias is not None
        and not any(_input(node, index) for index in (4, 6))
        and len(node.outputs) == 1
        and not node.attributes.get_int("do_rotary", 0)  # which only Attention can
        and _mask_can_stay(_input(node, _PADDING_MASK))
    )


def _mask_can_stay(mask: ir.Value | None) -> bool:
    """Return True if ``MultiHeadAttention`` takes the mask, too: there is none, or it is ``[batch, tokens]``."""
    return mask is None or _token_mask(mask) is not None


def _token_mask(mask: ir.Value | None) -> ir.Value | None:
    """Return the mask ``[batch, tokens]`` that ``mask`` is, or was computed from; None if there is none.

    A fused embedding, or a sum beside one that was not fused, counts each row's tokens, and ``Attention`` takes the counts; the
    mask they were counted from is used instead, since only some providers take counts in ``MultiHeadAttention``.
    """
    producer = mask.producer() if mask is not None else None
    if producer is not None and producer.op_type == "EmbedLayerNormalization" and mask is producer.outputs[1]:
        return _input(producer, 7)
    if producer is not None and producer.op_type == "ReduceSum":
        mask = _input(producer, 0)
    return mask if mask is not None and _rank(mask) == 2 else None


def _rank(value: ir.Value) -> int | None:
    """Return the number of axes, also where only the value it was cast from declares them."""
    producer = value.producer()
    if value.shape is None and producer is not None and producer.op_type in ("Cast", "Identity"):
        return _rank(producer.inputs[0]) if producer.inputs[0] is not None else None
    return value.shape.rank() if value.shape is not None else None


def _constant(node: ir.Node, index: int) -> np.ndarray:
    value = _input(node, index)
    assert value is not None and value.const_value is not None  # noqa: S101 - checked by _can_open
    return value.const_value.numpy()


def _one_product(nodes: Tape, node: ir.Node, sizes: Sequence[int]) -> ir.Value:
    product = nodes.op("MatMul", _input(node, 0), _input(node, 1), name="qkv")
    projected = nodes.split(nodes.op("Add", product, _input(node, 2), name="bias"), sizes)
    return _multi_head(nodes, node, projected, None)


def _three_products(nodes: Tape, node: ir.Node, sizes: Sequence[int]) -> ir.Value:
    return _multi_head(nodes, node, _products(nodes, node, sizes), _input(node, 2))


def _standard(nodes: Tape, node: ir.Node, sizes: Sequence[int]) -> ir.Value:
    """Return the output of ONNX's ``Attention``; it takes no bias for the projections, so that is added before."""
    biases = Tape(nodes.graph, _input(node, 2).name or nodes.scope)  # type: ignore[union-attr]  # checked by _can_be_standard
    parts = zip(
        ("query", "key", "value"), _parts(_constant(node, 2), sizes), _products(nodes, node, sizes), strict=True
    )
    projected = []
    for name, bias, product in parts:
        total = nodes.op("Add", product, biases.constant(f"{name}.bias", bias), name=f"{name}.bias")
        total.type, total.shape = product.type, product.shape
        projected.append(total)
    heads = node.attributes.get_int("num_heads")
    attributes: dict[str, float] = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "is_causal": node.attributes.get_int("unidirectional", 0),
    }
    if scale := node.attributes.get_float("scale", 0.0):
        attributes["scale"] = scale
    return nodes.op("Attention", *projected, _input(node, 5), attributes=attributes, name="heads")


def _multi_head(nodes: Tape, node: ir.Node, projected: Sequence[ir.Value], bias: ir.Value | None) -> ir.Value:
    attributes = {name: node.attributes[name] for name in _SHARED_ATTRIBUTES if name in node.attributes}
    inputs = (*projected, bias, _token_mask(_input(node, _PADDING_MASK)), _input(node, 5))
    return nodes.op("MultiHeadAttention", *inputs, domain=_DOMAIN, attributes=attributes, name="heads")


def _products(nodes: Tape, node: ir.Node, sizes: Sequence[int]) -> list[ir.Value]:
    x, weight = _input(node, 0), _input(node, 1)
    assert x is not None and weight is not None  # noqa: S101 - checked by _can_open
    weights = Tape(nodes.graph, weight.name or nodes.scope)  # layers that share the weight share its parts
    products = []
    for name, part in zip(("query", "key", "value"), _parts(_constant(node, 1), sizes), strict=True):
        product = nodes.op("MatMul", x, weights.constant(f"{name}.weight", part), name=name)
        product.type = x.type
        if x.shape is not None:
            product.shape = ir.Shape([*list(x.shape)[:-1], part.shape[1]])
        products.append(product)
    return products


def _parts(packed: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Split the last axis into parts of ``sizes``."""
    return [np.ascontiguousarray(part) for part in np.split(packed, np.cumsum(sizes)[:-1], axis=-1)]
