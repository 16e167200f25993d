"""Computes products in 8 bits: weights are rounded once per output channel, inputs in every run.

A product becomes ``QuantizeLinear`` and ONNX Runtime's ``MatMulIntegerToFloat``, which also scales the result and adds the
bias. Products with the same input share its quantization. With an :class:`InputScale` the input is rounded to a grid known in
advance, so that a row's result does not depend on the other rows of its batch; without one ``DynamicQuantizeLinear`` takes
the range of the batch.

The grid is one for all channels of an input, and a few channels of a transformer are far larger than the rest, for which the
grid is then too coarse. Balancing, as in SmoothQuant (arXiv:2211.10438), divides such channels by a factor and multiplies the
rows of the weights by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora_converters.graph.locate.products import Product, find_products
from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["FloatArray", "InputScale", "largest_weight", "quantize_products", "quantize_tables", "round_weight"]

_DOMAIN = "com.microsoft"
_LARGEST = {7: 64, 8: 127}
"""Bits of a weight → its largest value; two of 64 times 255 just fit the 16 bits in which processors without VNNI add."""
_SMALLEST_TABLE = 1 << 16
"""Numbers in the smallest lookup table that is worth rounding."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InputScale:
    """The grid that an input of products is rounded to: 256 steps from ``low`` to ``high``, zero among them."""

    low: float
    high: float
    """Of the balanced input; what is outside is rounded to the nearest end."""
    balance: FloatArray | None = None
    """What every channel is divided by; None leaves them as they are."""

    @property
    def step(self) -> np.float32:
        """Distance of two points of the grid."""
        return np.float32((max(self.high, 0.0) - min(self.low, 0.0)) / 255 or 1.0)

    @property
    def zero(self) -> np.uint8:
        """The point of the grid that stands for zero."""
        return np.uint8(np.clip(np.round(-min(self.low, 0.0) / self.step), 0, 255))

    def rounded(self, x: FloatArray) -> FloatArray:
        """Return the balanced ``x`` on the grid, in floating point."""
        balanced = x if self.balance is None else x / self.balance
        points = np.clip(np.round(balanced / self.step) + np.float32(self.zero), 0, 255)
        return ((points - np.float32(self.zero)) * self.step).astype(np.float32)


def largest_weight(bits: int) -> int:
    """Return the largest value of a weight of 7 or 8 bits."""
    return _LARGEST[bits]


def round_weight(weight: FloatArray, bits: int) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Return a weight ``[in, out]`` rounded per output channel, and the scale of every channel."""
    largest = _LARGEST[bits]
    scale = np.abs(weight).max(axis=0).astype(np.float32) / np.float32(largest)
    scale[scale == 0] = 1.0
    return np.clip(np.round(weight / scale), -largest, largest).astype(np.int8), scale


def quantize_products(
    model: ir.Model,
    scales: Mapping[str, InputScale] | None = None,
    *,
    balances: Mapping[str, FloatArray] | None = None,
    skip: Collection[str] = (),
    bits: int = 8,
) -> int:
    """Let every product with a constant weight compute in 8 bits, in place; return how many.

    Args:
        model: float32 graph.
        scales: name of an input of products → its grid; products with other inputs stay as they are. None takes the range of
            every batch.
        balances: without ``scales``: weight of a product → what the channels of its input are divided by; the same for all
            products of an input.
        skip: names of nodes that stay as they are.
        bits: of the weights, 7 or 8.
    """
    graph = model.graph
    found = [product for product in find_products(graph, skip) if scales is None or product.x.name in scales]
    by_input: dict[str, list[Product]] = {}
    for product in found:
        by_input.setdefault(str(product.x.name), []).append(product)
    for name, products in by_input.items():
        scale = scales[name] if scales is not None else None
        balance = scale.balance if scale is not None else (balances or {}).get(str(products[0].weight.name))
        x = products[0].node.inputs[0]  # which may be the result of another product, replaced by now
        assert x is not None  # noqa: S101 - find_products checks it
        nodes = Tape(graph, f"{name}/int8")
        quantized = _quantized(nodes, x, scale, balance)
        graph.insert_before(products[0].node, nodes.nodes)
        for product in products:
            _replace(graph, product, quantized, balance, bits)
    if found:
        graph.opset_imports.setdefault(_DOMAIN, 1)
    for weight in {product.weight for product in found}:
        if not weight.uses():
            del graph.initializers[str(weight.name)]
    return len(found)


def _quantized(
    nodes: Tape, x: ir.Value, scale: InputScale | None, balance: FloatArray | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the input in 8 bits, its scale and its zero point."""
    if balance is not None:
        x = nodes.op("Mul", x, nodes.constant("balance", 1 / balance), name="balanced")
    if scale is None:
        node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{nodes.scope}/quantize")
        for value, name in zip(node.outputs, ("quantized", "scale", "zero"), strict=True):
            value.name = f"{nodes.scope}/{name}"
        nodes.nodes.append(node)
        quantized, step, zero = node.outputs
        return quantized, step, zero
    step, zero = nodes.constant("scale", scale.step), nodes.constant("zero", scale.zero)
    return nodes.op("QuantizeLinear", x, step, zero, name="quantized"), step, zero


def _replace(
    graph: ir.Graph,
    product: Product,
    quantized: tuple[ir.Value, ir.Value, ir.Value],
    balance: FloatArray | None,
    bits: int,
) -> None:
    """Replace a product, and the addition of its bias, with an integer product."""
    x, step, zero = quantized
    owner = "" if balance is None else f"/{x.name}"  # unbalanced, all products with this weight share its 8 bits
    weights = Tape(graph, f"{product.weight.name}{owner}")
    if f"{weights.scope}/int8" not in graph.initializers:
        matrix = product.matrix()
        rounded, scale = round_weight(matrix if balance is None else matrix * balance[:, None], bits)
        weights.constant("int8", rounded)
        weights.constant("scale", scale)
    names = [graph.initializers[f"{weights.scope}/{name}"] for name in ("int8", "scale")]
    nodes = Tape(graph, f"{product.node.name}/int8")
    # onnxruntime replaces int8 weights on processors that need it only if their zero point is given.
    none = weights.constant("zero", np.int8(0))
    result = nodes.op(
        "MatMulIntegerToFloat", x, names[0], step, names[1], zero, none, product.bias, domain=_DOMAIN, name="product"
    )
    if product.last.op_type == "BiasGelu":
        result.type, result.shape = product.last.outputs[0].type, product.last.outputs[0].shape
        result = nodes.op("Gelu", result, domain=_DOMAIN, name="gelu")
    nodes.nodes[-1].metadata_props.update(product.last.metadata_props)
    replace_node(graph, product.last, nodes, result)
    if product.last is not product.node:
        graph.remove(product.node, safe=True)


def quantize_tables(model: ir.Model) -> int:
    """Store lookup tables of float32 rows in 8 bits, with a scale for every row, in place; return how many lookups changed."""
    graph = model.graph
    lookups = [node for node in graph if node.op_type == "Gather" and not node.domain and _reads_table(node)]
    for node in lookups:
        table, ids = node.inputs[0], node.inputs[1]
        assert table is not None and table.const_value is not None  # noqa: S101 - checked by _reads_table
        stored = Tape(graph, str(table.name))
        if f"{stored.scope}/int8" not in graph.initializers:
            rounded, scale = round_weight(np.asarray(table.const_value.numpy(), np.float32).T, 8)
            stored.constant("int8", np.ascontiguousarray(rounded.T))
            stored.constant("scale", scale[:, None])
        parts = [graph.initializers[f"{stored.scope}/{name}"] for name in ("int8", "scale")]
        nodes = Tape(graph, f"{node.name}/int8")
        rows, scales = (nodes.op("Gather", part, ids) for part in parts)
        rows = nodes.op("Cast", rows, attributes={"to": ir.DataType.FLOAT.value})
        result = nodes.op("Mul", rows, scales, name="rows")
        nodes.nodes[-1].metadata_props.update(node.metadata_props)
        replace_node(graph, node, nodes, result)
        if not table.uses():
            del graph.initializers[str(table.name)]
    return len(lookups)


def _reads_table(node: ir.Node) -> bool:
    """Return True if ``node`` looks up rows of a large constant float32 matrix that callers cannot replace."""
    table = node.inputs[0]
    tensor = table.const_value if table is not None else None
    return (
        table is not None
        and tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.shape.rank() == 2
        and tensor.size >= _SMALLEST_TABLE
        and not table.is_graph_input()
        and node.attributes.get_int("axis", 0) == 0
    )
