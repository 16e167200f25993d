"""Adds pooling and normalization to a graph, so that any runtime returns one finished embedding per row.

The pass works without torch, on graphs from any exporter. The added nodes always compute in float32,
because sums over many tokens are where half precision is least accurate.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import InputError
from rmlora.image_vector import POOLED_OUTPUTS
from rmlora.pooling import Pooling
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["EMBEDDING_NAME", "POOLING_SCOPE", "TOKENS_NAME", "insert_pooling", "keep_answer"]

TOKENS_NAME = "last_hidden_state"
"""Output with the token vectors ``[batch, tokens, width]``, as transformers calls it."""

EMBEDDING_NAME = "sentence_embedding"
"""Output with the embeddings ``[batch, width]``, as sentence-transformers and Optimum call it."""

POOLING_SCOPE = "pooling"
"""Names of the added nodes begin with this and a slash."""

_TOKEN_OUTPUTS = (TOKENS_NAME, "token_embeddings")
_POOLED_OUTPUTS = (EMBEDDING_NAME, *POOLED_OUTPUTS)
"""What vectors are called that a model has pooled itself, in graphs and in transformers' models."""
_MASK = "attention_mask"


def insert_pooling(model: ir.Model, pooling: Pooling, *, padded: bool = True) -> None:
    """Make ``model`` return one vector per row, in place. What a model has pooled already is at most normalized.

    Args:
        model: a graph with the token vectors ``[batch, tokens, width]`` among its outputs, or a feature map ``[batch,
            channels, height, width]``, or with vectors that it pools itself; the other outputs are dropped.
        pooling: what is pooled, and whether the result is normalized.
        padded: False if all tokens of all rows count, as with images.

    Raises:
        InputError: the graph has no such output, or no attention mask though rows are padded.
    """
    given = keep_answer(model, pooling)
    pooled = given.name in _POOLED_OUTPUTS
    if given.name == EMBEDDING_NAME:
        if not pooling.normalize:
            return
        given.name = f"{POOLING_SCOPE}/given"
    nodes = Tape(model.graph, POOLING_SCOPE)
    hidden = nodes.op("Cast", given, attributes={"to": ir.DataType.FLOAT}) if _is_half(given) else given
    if pooled:
        vector = nodes.op("Flatten", hidden, name="flat") if _rank(given) == 4 else hidden
    else:
        vector = (
            _pooled(nodes, hidden, model.graph, pooling) if padded else _of_all(nodes, hidden, _rank(given), pooling)
        )
    if pooling.normalize:
        squares = nodes.sum(nodes.op("Mul", vector, vector), -1)
        norm = nodes.op("Max", nodes.op("Sqrt", squares), nodes.constant("least_norm", np.float32(1e-12)))
        vector = nodes.op("Div", vector, norm, name="normalized")
    shape = given.shape
    vector.name = EMBEDDING_NAME
    vector.type = ir.TensorType(ir.DataType.FLOAT)
    if shape is not None and shape.rank() >= 2:
        vector.shape = ir.Shape([shape[0], shape[2 if shape.rank() == 3 else 1]])
    elif pooled:
        vector.shape = shape
    model.graph.extend(nodes.nodes)
    model.graph.outputs[0] = vector


def keep_answer(model: ir.Model, pooling: Pooling | None = None) -> ir.Value:
    """Drop all outputs of ``model`` but the one that embeddings are computed from, and return it.

    For vectors that the model pools itself this is the output called ``sentence_embedding``, else ``image_embeds`` or
    ``pooler_output``, else the only one with two axes. For others it is the one called ``sentence_embedding``, else
    ``last_hidden_state`` or ``token_embeddings``, else the only one with three axes, else the only one with two. One with two
    axes is pooled already, and gets the name ``sentence_embedding``.

    Args:
        model: a graph.
        pooling: what is pooled; None for token vectors.

    Raises:
        InputError: there is no such output.
    """
    outputs = list(model.graph.outputs)
    named = {value.name: value for value in outputs}
    own = pooling is not None and pooling.mode == "pooler"
    names = _POOLED_OUTPUTS if own else (EMBEDDING_NAME, *_TOKEN_OUTPUTS)
    found = next((named[name] for name in names if name in named), None)
    for rank in (2,) if own else (3, 2):
        of_rank = [value for value in outputs if _rank(value) == rank]
        if found is None and len(of_rank) == 1:
            found = of_rank[0]
            found.name = EMBEDDING_NAME if rank == 2 else found.name
    if found is None:
        kind, name = (
            ("vectors that the model pools itself", "pooler_output") if own else ("the token vectors", TOKENS_NAME)
        )
        raise InputError(
            f"The graph's outputs are {', '.join(map(str, named))}, and none is known to hold {kind}: export it with an output "
            f"called {name}."
        )
    model.graph.outputs[:] = [found]
    RemoveUnusedNodesPass()(model)
    return found


def _of_all(nodes: Tape, hidden: ir.Value, rank: int | None, pooling: Pooling) -> ir.Value:
    """Pool all tokens of rows without padding, ``[batch, tokens, width]`` or a feature map ``[batch, channels, height, width]``."""
    if rank == 4:
        return nodes.op("Flatten", nodes.op("GlobalAveragePool", hidden), name="mean")
    if pooling.mode == "cls":
        return _first(nodes, hidden)
    last = nodes.op("Transpose", hidden, attributes={"perm": [0, 2, 1]})
    return nodes.op("Flatten", nodes.op("GlobalAveragePool", last), name="mean")


def _first(nodes: Tape, hidden: ir.Value) -> ir.Value:
    return nodes.op("Gather", hidden, nodes.constant("first", 0), attributes={"axis": 1}, name="cls")


def _pooled(nodes: Tape, hidden: ir.Value, graph: ir.Graph, pooling: Pooling) -> ir.Value:
    """Pool ``hidden [batch, tokens, width]`` to ``[batch, width]``, as sentence-transformers defines it."""
    if pooling.mode == "cls":
        return _first(nodes, hidden)
    mask = next((value for value in graph.inputs if value.name == _MASK), None)
    if mask is None:
        raise InputError(f"The graph takes no '{_MASK}', so padding would count as text: export it with that input.")
    if pooling.mode == "last":
        whole, real = (nodes.op("Cast", mask, attributes={"to": to}) for to in (ir.DataType.INT64, ir.DataType.BOOL))
        left = nodes.op("CumSum", whole, nodes.constant("axis", 1), attributes={"reverse": 1}, name="tokens_left")
        is_last = nodes.op("And", real, nodes.op("Equal", left, nodes.constant("one", 1)))
        chosen = nodes.op("Cast", is_last, attributes={"to": ir.DataType.FLOAT})
        return nodes.sum(_weighted(nodes, hidden, chosen), 1, keepdims=False, name="last")
    counted = nodes.op("Cast", mask, attributes={"to": ir.DataType.FLOAT})
    total = nodes.sum(_weighted(nodes, hidden, counted), 1, keepdims=False, name="total")
    count = nodes.op("Max", nodes.sum(counted, 1, name="count"), nodes.constant("least", np.float32(1e-9)))
    return nodes.op("Div", total, count, name="mean")


def _weighted(nodes: Tape, hidden: ir.Value, weights: ir.Value) -> ir.Value:
    """Return ``hidden`` with every token vector multiplied by its weight ``[batch, tokens]``, float32."""
    column = nodes.op("Reshape", weights, nodes.constant("column", [0, -1, 1]))
    return nodes.op("Mul", hidden, column)


def _rank(value: ir.Value) -> int | None:
    return value.shape.rank() if value.shape is not None else None


def _is_half(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
