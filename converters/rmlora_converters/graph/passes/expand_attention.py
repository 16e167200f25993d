"""Replaces ONNX's ``Attention`` with the products and the softmax that it stands for, for runtimes that lack the operator.

It joined ONNX with operator set 23. :mod:`~rmlora_converters.graph.passes.open_attention` writes it, and OpenVINO 2025.4
cannot read it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["expand_attention"]


def expand_attention(model: ir.Model) -> int:
    """Replace every ``Attention`` node whose inputs are ``[batch, tokens, width]``, in place; return how many.

    Nodes with a past, with a causal mask, with soft-capped scores, with fewer key than query heads, or with further outputs
    stay as they are.
    """
    found = [node for node in model.graph if _can_expand(node)]
    for node in found:
        tape = Tape(model.graph, f"{node.name or node.outputs[0].name}/expanded")
        replace_node(model.graph, node, tape, _expanded(tape, node))
    return len(found)


def _can_expand(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Attention"):
        return False
    heads = node.attributes.get_int("q_num_heads", 0)
    query = node.inputs[0]
    return (
        heads > 0
        and heads == node.attributes.get_int("kv_num_heads", 0)
        and not any(node.attributes.get_int(name, 0) for name in ("is_causal", "qk_matmul_output_mode"))
        and not node.attributes.get_float("softcap", 0.0)
        and all(value is None for value in node.inputs[4:])
        and all(not output.uses() and not output.is_graph_output() for output in node.outputs[1:])
        and query is not None
        and query.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)
    )


def _expanded(tape: Tape, node: ir.Node) -> ir.Value:
    """Return ``softmax(q·kᵀ·scale + mask)·v``, computed head by head and joined to ``[batch, tokens, width]``."""
    heads, kind = node.attributes.get_int("q_num_heads"), _type(node)
    query, key, value = (_split(tape, part, heads) for part in node.inputs[:3])
    keys = tape.op("Transpose", key, attributes={"perm": [0, 1, 3, 2]}, name="keys")
    scale = node.attributes.get_float("scale", 0.0)
    if scale:
        scores = tape.op("Mul", tape.op("MatMul", query, keys), tape.constant("scale", np.asarray(scale, kind.numpy())))
    else:
        width = tape.op("Cast", tape.shape(query, 3, 4), attributes={"to": int(kind)})
        scores = tape.op("Div", tape.op("MatMul", query, keys), tape.op("Sqrt", width))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None:
        scores = tape.op("Add", scores, _additive(tape, mask, kind))
    weighted = tape.op("MatMul", tape.op("Softmax", scores, attributes={"axis": -1}), value)
    turned = tape.op("Transpose", weighted, attributes={"perm": [0, 2, 1, 3]}, name="joined")
    return tape.op("Reshape", turned, tape.constant("join", np.array([0, 0, -1], np.int64)))


def _split(tape: Tape, value: ir.Value | None, heads: int) -> ir.Value:
    """Return ``[batch, tokens, width]`` as ``[batch, heads, tokens, width / heads]``."""
    assert value is not None  # noqa: S101 - query, key and value are no optional inputs
    shape = tape.constant("split", np.array([0, 0, heads, -1], np.int64))
    return tape.op("Transpose", tape.op("Reshape", value, shape), attributes={"perm": [0, 2, 1, 3]})


def _type(node: ir.Node) -> ir.DataType:
    """Return the type that the node computes in; float32 if the graph does not say."""
    query = node.inputs[0]
    return ir.DataType.FLOAT if query is None or query.dtype is None else query.dtype


def _additive(tape: Tape, mask: ir.Value, kind: ir.DataType) -> ir.Value:
    if mask.dtype != ir.DataType.BOOL:
        return mask
    numbers = kind.numpy()
    low, zero = tape.constant("low", np.finfo(numbers).min), tape.constant("zero", np.zeros((), numbers))
    return tape.op("Where", mask, zero, low)
