"""Finds the base's own head in a graph with branches, by the node that concatenates its output with an adapter's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import InputError
from rmlora_converters.graph.contract.lora_inputs import HeadInputs
from rmlora_converters.graph.locate.uses import constant_input, stored_value
from rmlora_converters.graph.passes.branch_nodes import JOINED_OUTPUTS
from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE

__all__ = ["base_head"]

AnyArray = npt.NDArray[Any]


def base_head(model: ir.Model, head: HeadInputs) -> dict[str, AnyArray] | None:
    """Return the arrays that make a row of a mixed batch use the base's head, by input name; None if it is quantized.

    The weight is ``[1, in, labels]`` and the bias ``[1, labels]``.

    Raises:
        InputError: the graph does not look as the branch pass made it.
    """
    name = f"{BRANCH_SCOPE}/{head.module}/{JOINED_OUTPUTS}"
    joined = next((node for node in model.graph if node.name == name), None)
    node = joined.inputs[0].producer() if joined is not None and joined.inputs[0] is not None else None
    bias: AnyArray | None = None
    if node is not None and node.op_type == "Add":
        bias = constant_input(node)
        computed = (value for value in node.inputs if value is not None and stored_value(value).const_value is None)
        node = next((value.producer() for value in computed), None)
    if node is not None and node.op_type in ("Mul", "MatMulNBits", "DynamicQuantizeMatMul"):
        return None
    weight = constant_input(node, 1) if node is not None and node.op_type in ("MatMul", "Gemm") else None
    if node is None or weight is None:
        raise InputError(f"The graph has no '{name}' after a product with a constant weight: export it again.")
    if node.op_type == "Gemm":
        weight = weight.T if node.attributes.get_int("transB", 0) else weight
        bias = constant_input(node, 2) if len(node.inputs) > 2 else bias
    if bias is None:
        bias = np.zeros(weight.shape[1], weight.dtype)
    taken = model.graph.initializers[head.weight].const_value
    dtype = (
        weight.dtype if taken is None else taken.dtype.numpy()
    )  # weights may be stored in another type than is computed in
    return {head.weight: np.ascontiguousarray(weight, dtype)[None], head.bias: bias.astype(dtype).reshape(1, -1)}
