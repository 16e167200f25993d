"""Finds the products with a constant weight: what a quantizer can compute in 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Product", "find_products"]


@dataclass(frozen=True)
class Product:
    """A node that multiplies an input by a constant matrix, and the bias that is added to the result, if any."""

    node: ir.Node
    """``MatMul`` or ``Gemm``."""
    x: ir.Value
    """Input ``[..., in]``."""
    weight: ir.Value
    """Initializer ``[in, out]``, or ``[out, in]`` if ``transposed``."""
    transposed: bool
    bias: ir.Value | None
    """Initializer ``[out]``; None if no bias is added."""
    last: ir.Node
    """The node whose output is the result: ``node``, or the one after it that adds the bias (``Add``, ``BiasGelu``)."""

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return the weight as float32 ``[in, out]``."""
        assert self.weight.const_value is not None  # noqa: S101 - find_products checks it
        array = np.asarray(self.weight.const_value.numpy(), np.float32)
        return array.T if self.transposed else array


def find_products(graph: ir.Graph, skip: Collection[str] = ()) -> Iterator[Product]:
    """Yield the products of ``graph`` with a constant float32 matrix, in the order of execution.

    Args:
        graph: searched without its subgraphs.
        skip: names of nodes to leave out.
    """
    for node in graph:
        if node.domain or node.op_type not in ("MatMul", "Gemm") or node.name in skip:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or x.const_value is not None or not _is_constant(weight, rank=2):
            continue
        if node.op_type == "MatMul":
            last, bias = _bias_after(node)
            yield Product(node, x, weight, False, bias, last)
        elif _is_plain(node):
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            yield Product(node, x, weight, bool(node.attributes.get_int("transB", 0)), bias, node)


def _is_constant(value: ir.Value | None, *, rank: int) -> bool:
    """Return True for a float32 initializer of this rank that callers cannot replace, as they can a LoRA input."""
    tensor = value.const_value if value is not None else None
    return (
        value is not None
        and tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.shape.rank() == rank
        and not value.is_graph_input()
    )


def _is_plain(gemm: ir.Node) -> bool:
    """Return True if ``gemm`` computes ``x · weight + bias``."""
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    return (
        gemm.attributes.get_float("alpha", 1.0) == 1.0
        and gemm.attributes.get_float("beta", 1.0) == 1.0
        and not gemm.attributes.get_int("transA", 0)
        and (bias is None or _is_constant(bias, rank=1))
    )


def _bias_after(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the node that adds a constant vector to a product, and the vector; the product itself and None without one."""
    output = product.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return product, None
    user, width = uses[0].node, product.inputs[1].const_value.shape[1]  # type: ignore[union-attr]  # is constant
    if (user.op_type, user.domain) in (("Add", ""), ("BiasGelu", "com.microsoft")):
        other = next((value for value in user.inputs if value is not output), None)
        if _is_constant(other, rank=1) and other.const_value.shape[0] == width:  # type: ignore[union-attr]
            return user, other
    return product, None
