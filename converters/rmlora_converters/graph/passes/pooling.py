"""One vector for every row: pooling and normalization as nodes of the graph, so that any runtime gives ready embeddings.

A pass over the ONNX model, without torch, for our own exports and for others' alike. What it computes is float32 in
every precision: sums over many tokens are what half precision is worst at.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import InputError
from rmlora.pooling import Pooling
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["EMBEDDING_NAME", "POOLING_SCOPE", "TOKENS_NAME", "insert_pooling", "keep_answer"]

TOKENS_NAME = "last_hidden_state"
"""What transformers calls the vectors of the tokens ``[batch, tokens, width]``."""

EMBEDDING_NAME = "sentence_embedding"
"""The output ``[batch, width]``, as sentence-transformers and Optimum call it."""

POOLING_SCOPE = "pooling"
"""Names of the nodes that are inserted begin with this and a slash."""

_TOKENS = (TOKENS_NAME, "token_embeddings")
_MASK = "attention_mask"
_OPSET = 13
"""From which on sums take their axes as an input."""


def insert_pooling(model: ir.Model, pooling: Pooling) -> None:
    """Let ``model`` answer with one vector for every row, in place; one that does so already keeps it as it is.

    Args:
        model: its answer is the vectors of the tokens ``[batch, tokens, width]``; other outputs are dropped.
        pooling: which tokens count, and whether the result is normalized.

    Raises:
        InputError: the graph gives no such vectors, or takes nothing that tells tokens from padding.
    """
    tokens = keep_answer(model)
    if tokens.name == EMBEDDING_NAME:
        return
    if model.opset_imports.get("", 0) < _OPSET:
        raise InputError(f"The graph is of opset {model.opset_imports.get('', 0)}: export it with {_OPSET} or later.")
    nodes = Tape(model.graph, POOLING_SCOPE)
    hidden = nodes.op("Cast", tokens, attributes={"to": ir.DataType.FLOAT}) if _is_half(tokens) else tokens
    vector = _pooled(nodes, hidden, model.graph, pooling)
    if pooling.normalize:
        squares = nodes.op("ReduceSum", nodes.op("Mul", vector, vector), nodes.constant("width_axis", [-1]))
        norm = nodes.op("Max", nodes.op("Sqrt", squares), nodes.constant("least_norm", np.float32(1e-12)))
        vector = nodes.op("Div", vector, norm, name="normalized")
    vector.name = EMBEDDING_NAME
    vector.type = ir.TensorType(ir.DataType.FLOAT)
    if tokens.shape is not None and tokens.shape.rank() == 3:
        vector.shape = ir.Shape([tokens.shape[0], tokens.shape[2]])
    model.graph.extend(nodes.nodes)
    model.graph.outputs[0] = vector


def keep_answer(model: ir.Model) -> ir.Value:
    """Leave ``model`` the one output that vectors of rows are made of, and return it.

    That is the one called ``sentence_embedding``, else ``last_hidden_state`` or ``token_embeddings``, else the only one of
    three axes, else the only one of two, which is a vector already and gets that name.

    Raises:
        InputError: no output is one of these.
    """
    outputs = list(model.graph.outputs)
    named = {value.name: value for value in outputs}
    found = next((named[name] for name in (EMBEDDING_NAME, *_TOKENS) if name in named), None)
    for rank in (3, 2):
        of_rank = [value for value in outputs if value.shape is not None and value.shape.rank() == rank]
        if found is None and len(of_rank) == 1:
            found = of_rank[0]
            found.name = EMBEDDING_NAME if rank == 2 else found.name
    if found is None:
        raise InputError(
            f"The graph's outputs are {', '.join(map(str, named))}, and none is known to hold the tokens' vectors: export it "
            f"with one called {TOKENS_NAME}."
        )
    model.graph.outputs[:] = [found]
    RemoveUnusedNodesPass()(model)
    return found


def _pooled(nodes: Tape, hidden: ir.Value, graph: ir.Graph, pooling: Pooling) -> ir.Value:
    """Return ``[batch, width]`` of ``hidden [batch, tokens, width]``, as sentence-transformers defines it."""
    if pooling.mode == "cls":
        return nodes.op("Gather", hidden, nodes.constant("first", 0), attributes={"axis": 1}, name="cls")
    mask = next((value for value in graph.inputs if value.name == _MASK), None)
    if mask is None:
        raise InputError(f"The graph takes no '{_MASK}', so padding would count as text: export it with that input.")
    axis = nodes.constant("token_axis", [1])
    if pooling.mode == "last":
        whole, real = (nodes.op("Cast", mask, attributes={"to": to}) for to in (ir.DataType.INT64, ir.DataType.BOOL))
        left = nodes.op("CumSum", whole, nodes.constant("axis", 1), attributes={"reverse": 1}, name="tokens_left")
        is_last = nodes.op("And", real, nodes.op("Equal", left, nodes.constant("one", 1)))
        chosen = nodes.op("Cast", is_last, attributes={"to": ir.DataType.FLOAT})
        return nodes.op("ReduceSum", _weighted(nodes, hidden, chosen), axis, attributes={"keepdims": 0}, name="last")
    counted = nodes.op("Cast", mask, attributes={"to": ir.DataType.FLOAT})
    total = nodes.op("ReduceSum", _weighted(nodes, hidden, counted), axis, attributes={"keepdims": 0}, name="total")
    count = nodes.op(
        "Max", nodes.op("ReduceSum", counted, axis, name="count"), nodes.constant("least", np.float32(1e-9))
    )
    return nodes.op("Div", total, count, name="mean")


def _weighted(nodes: Tape, hidden: ir.Value, weights: ir.Value) -> ir.Value:
    """Return ``hidden`` with every token times its weight ``[batch, tokens]``, float32."""
    column = nodes.op("Reshape", weights, nodes.constant("column", [0, -1, 1]))
    return nodes.op("Mul", hidden, column)


def _is_half(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
