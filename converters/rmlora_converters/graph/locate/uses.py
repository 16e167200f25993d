"""Uses and contents of a value in a graph, seen through the operators that only pass it on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["captured_values", "constant_input", "stored_transposed", "stored_value", "uses_of"]

_PASSED_THROUGH = {"Transpose", "Cast", "Identity"}
_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "Attention", "MatMulInteger", "DynamicQuantizeMatMul"}
"""Operators whose second input is a matrix ``[in, out]``, or ``[out, in]`` if they have the attribute ``transB``."""


def uses_of(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield (node, input index) for every use of ``value``, looking through operators that only pass it on."""
    for use in value.uses():
        if use.node.op_type in _PASSED_THROUGH:
            yield from uses_of(use.node.outputs[0])
        else:
            yield use.node, use.idx


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that the subgraphs of ``node``, such as those of an ``If``, read."""
    for attribute in node.attributes.values():
        for inner in attribute.as_graph() if attribute.type == ir.AttributeType.GRAPH else ():
            yield from (value for value in inner.inputs if value is not None)
            yield from captured_values(inner)


def stored_transposed(value: ir.Value, flipped: bool = False) -> bool | None:
    """Return True if a linear weight is stored ``[in, out]``, judging by its uses; None if they do not tell.

    ``flipped`` means that ``value`` is the transposed weight.
    """
    for use in value.uses():
        node = use.node
        if node.op_type in _PASSED_THROUGH:
            transposed = stored_transposed(node.outputs[0], flipped != (node.op_type == "Transpose"))
            if transposed is not None:
                return transposed
        elif node.op_type in _PRODUCTS and use.idx == 1:
            return flipped == (node.attributes.get_int("transB", 0) == 1)
    return None


def stored_value(value: ir.Value) -> ir.Value:
    """Return the value that holds the content of ``value``, which may be stored in another type and cast where it is used."""
    producer = value.producer()
    while producer is not None and producer.op_type in ("Cast", "Identity") and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def constant_input(node: ir.Node, index: int | None = None) -> npt.NDArray[Any] | None:
    """Return the content of a constant input: the one at ``index``, or else the first; None if it is not constant."""
    values = node.inputs if index is None else node.inputs[index : index + 1]
    return next((content for content in map(_content, values) if content is not None), None)


def _content(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the constant content of a value, looking through operators that only pass it on; None if it has none."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None or node.op_type not in _PASSED_THROUGH:
        return None
    content = _content(node.inputs[0])
    if content is None or node.op_type != "Transpose":
        return content
    return np.transpose(content, list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None)
