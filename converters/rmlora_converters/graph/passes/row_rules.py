"""How each operator is rewritten if an input has the axis ``rows`` in front of its own axes, one function per kind of operator.

Three kinds of values meet in a node: those with the axis ``rows`` (:class:`.rows_axis.RowsAxis`), those that are the same for all
rows, and those whose first axis is the batch. The result has the axis ``rows``, or, if the batch takes part, the shape that it
always had.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.locate.uses import constant_input
from rmlora_converters.graph.passes.rewire import replace_node
from rmlora_converters.graph.passes.rows_axis import RowsAxis
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["RULES"]

Rule = Callable[[RowsAxis, ir.Node], None]
_END = np.iinfo(np.int64).max


def _elementwise(axis: RowsAxis, node: ir.Node) -> None:
    """An operator that works element by element and broadcasts."""
    inputs = [value for value in node.inputs if value is not None]
    ranks = [axis.rank(value, node) for value in inputs]
    batch = max(filter(axis.carries, inputs), key=lambda value: axis.rank(value, node), default=None)
    if batch is not None and axis.rank(batch, node) < max(ranks):
        raise axis.refusal(node)
    nodes = axis.tape(node)
    for index, value in enumerate(node.inputs):
        if value is not None and axis.has_rows(value):
            own = axis.rank(value, node)
            new = (
                axis.aligned(nodes, value, max(ranks), own)
                if batch is None
                else axis.as_batch(nodes, value, batch, node)
            )
            node.replace_input_with(index, new)
    axis.graph.insert_before(node, nodes.nodes)
    if batch is None:
        _mark(axis, node, max(ranks), inputs)


def _mark(axis: RowsAxis, node: ir.Node, rank: int, inputs: list[ir.Value]) -> None:
    """Mark the outputs; ``inputs`` are those before the node was rewritten, which say where the rows come from."""
    origin = next(value for value in inputs if axis.has_rows(value))
    for value in node.outputs:
        axis.start(value, rank, axis.origin_of(origin))
        value.shape = None


def _matrix_product(axis: RowsAxis, node: ir.Node) -> None:
    """A product of the last two axes; those before are broadcast. Further inputs (zero points) are scalars."""
    if any(node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        raise axis.refusal(node)
    left, right = node.inputs[:2]
    if left is None or right is None:
        raise axis.refusal(node)
    ranks = {value: axis.rank(value, node) for value in (left, right)}
    rank = max(ranks.values())
    batch = next((value for value in (left, right) if axis.carries(value)), None)
    if min(ranks.values()) < 2 or (batch is not None and (ranks[batch] < rank or rank < 3)):
        raise axis.refusal(node)
    nodes = axis.tape(node)
    for index, value in enumerate((left, right)):
        if axis.has_rows(value) and batch is not None:
            node.replace_input_with(index, axis.as_batch(nodes, value, batch, node))
        elif axis.has_rows(value):
            node.replace_input_with(index, axis.aligned(nodes, value, rank, ranks[value]))
    axis.graph.insert_before(node, nodes.nodes)
    if batch is None:
        _mark(axis, node, rank, [left, right])


def _last_axis(axis: RowsAxis, node: ir.Node) -> None:
    """An operator that reads the first input along its last axis only, such as a product with a packed weight."""
    value = _only_first(axis, node)
    if node.attributes.get_int("axis", -1) != -1 and "axis" in node.attributes:
        number = node.attributes.get_int("axis", -1)
        if number >= 0:
            node.attributes["axis"] = ir.AttrInt64("axis", number + 1)
    _mark(axis, node, axis.rank(value, node), [value])


def _only_first(axis: RowsAxis, node: ir.Node) -> ir.Value:
    """Return the first input, which must be the only one with rows."""
    value = node.inputs[0]
    if value is None or not axis.has_rows(value):
        raise axis.refusal(node)
    if any(axis.has_rows(other) or axis.carries(other) for other in node.inputs[1:]):
        raise axis.refusal(node)
    return value


def _quantize(axis: RowsAxis, node: ir.Node) -> None:
    """``DynamicQuantizeLinear``: the numbers have rows, their scale and zero point are scalars."""
    value = _only_first(axis, node)
    axis.start(node.outputs[0], axis.rank(value, node), axis.origin_of(value))
    node.outputs[0].shape = None


def _gemm(axis: RowsAxis, node: ir.Node) -> None:
    """``Gemm`` takes matrices only, so it becomes a product and a sum."""
    value = _only_first(axis, node)
    weight = node.inputs[1]
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if weight is None or not plain or node.attributes.get_int("transA", 0) != 0:
        raise axis.refusal(node)
    nodes = axis.tape(node)
    if node.attributes.get_int("transB", 0):
        weight = nodes.op("Transpose", weight, attributes={"perm": [1, 0]})
    new = nodes.op("MatMul", value, weight)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        new = nodes.op("Add", new, node.inputs[2])
    _replace(axis, node, nodes, new, rank=2)


def _replace(axis: RowsAxis, node: ir.Node, nodes: Tape, new: ir.Value, *, rank: int | None) -> None:
    """Replace ``node`` with ``new``, which has rows and ``rank`` axes, or the old shape if that is None."""
    module = axis.origin(node)
    axis.values.add(new, like=node.outputs[0])
    replace_node(axis.graph, node, nodes, new)
    if rank is not None:
        axis.start(new, rank, module)
        new.shape = None


def _reshape(axis: RowsAxis, node: ir.Node) -> None:
    """``Reshape``: the new sizes follow the number of rows."""
    value, sizes = _only_first(axis, node), node.inputs[1]
    rank = _length(sizes)
    if sizes is None or rank is None or axis.values.sized_by_batch(sizes):
        raise axis.refusal(node)
    nodes = axis.tape(node)
    new = nodes.op("Concat", axis.count(nodes, value), sizes, attributes={"axis": 0})
    axis.graph.insert_before(node, nodes.nodes)
    _mark(axis, node, rank, [value])
    node.replace_input_with(1, new)


def _length(value: ir.Value | None) -> int | None:
    """Return the number of elements of a list; None if it is not known."""
    if value is None:
        return None
    if value.const_value is not None:
        return int(np.prod(value.const_value.shape.numpy()))
    size = value.shape[0] if value.shape is not None and value.shape.rank() == 1 else None
    return size if isinstance(size, int) else None


def _transpose(axis: RowsAxis, node: ir.Node) -> None:
    value = _only_first(axis, node)
    rank = axis.rank(value, node)
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(number + 1 for number in order)])
    _mark(axis, node, rank, [value])


def _with_axes(change: int) -> Rule:
    """Return the rule of an operator that takes axes, as an attribute or as its second input.

    Each axis adds ``change`` to the number of axes, where the operator adds or removes axes.
    """

    def rule(axis: RowsAxis, node: ir.Node) -> None:
        value = _only_first(axis, node)
        axes = (
            list(node.attributes["axes"].as_ints())
            if "axes" in node.attributes
            else constant_input(node, 1)
            if len(node.inputs) > 1
            else None
        )
        if axes is None:
            raise axis.refusal(node)
        numbers = [int(number) for number in np.reshape(axes, -1)]
        moved = [number + 1 if number >= 0 else number for number in numbers]
        if "axes" in node.attributes:
            node.attributes["axes"] = ir.AttrInt64s("axes", moved)
        else:
            nodes = axis.tape(node)
            node.replace_input_with(1, nodes.constant("axes", moved))
        kept = node.attributes.get_int("keepdims", 1)
        added = change * len(numbers) if node.op_type in ("Squeeze", "Unsqueeze") else (0 if kept else -len(numbers))
        _mark(axis, node, axis.rank(value, node) + added, [value])

    return rule


def _one_axis(default: int) -> Rule:
    """Return the rule of an operator with the attribute ``axis``, of which ``default`` is the default."""

    def rule(axis: RowsAxis, node: ir.Node) -> None:
        value = _only_first(axis, node)
        rank = axis.rank(value, node)
        number = node.attributes.get_int("axis", default)
        if node.op_type in ("Softmax", "LogSoftmax") and axis.opset < 13 and number not in (-1, rank - 1):
            raise axis.refusal(node)
        node.attributes["axis"] = ir.AttrInt64("axis", number + 1 if number >= 0 else number)
        _mark(axis, node, rank, [value])

    return rule


def _slice(axis: RowsAxis, node: ir.Node) -> None:
    value = _only_first(axis, node)
    starts = constant_input(node, 1) if len(node.inputs) > 1 else None
    axes = constant_input(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if axes is None and ((len(node.inputs) > 3 and node.inputs[3] is not None) or _length(node.inputs[1]) is None):
        raise axis.refusal(node)
    count = len(starts) if starts is not None else _length(node.inputs[1])
    numbers = list(range(count or 0)) if axes is None else [int(number) for number in axes]
    nodes = axis.tape(node)
    moved = nodes.constant("axes", [number + 1 if number >= 0 else number for number in numbers])
    if len(node.inputs) > 3:
        node.replace_input_with(3, moved)
    else:
        node.resize_inputs(4)
        node.replace_input_with(3, moved)
    _mark(axis, node, axis.rank(value, node), [value])


def _gather(axis: RowsAxis, node: ir.Node) -> None:
    """``Gather`` with the same indices for all rows."""
    value, index = _only_first(axis, node), node.inputs[1]
    if index is None:
        raise axis.refusal(node)
    rank, number = axis.rank(value, node), node.attributes.get_int("axis", 0)
    node.attributes["axis"] = ir.AttrInt64("axis", number + 1 if number >= 0 else number)
    _mark(axis, node, rank - 1 + axis.rank(index, node), [value])


def _gather_nd(axis: RowsAxis, node: ir.Node) -> None:
    """``GatherND`` with one number per index is a ``Gather``; exporters write it for a table read by a vector."""
    value, index = _only_first(axis, node), node.inputs[1]
    last = index.shape[-1] if index is not None and index.shape is not None else None
    if index is None or last != 1 or node.attributes.get_int("batch_dims", 0) != 0:
        raise axis.refusal(node)
    nodes = axis.tape(node)
    rank = axis.rank(index, node)
    new = nodes.op("Gather", value, nodes.squeeze(index, rank - 1), attributes={"axis": 1})
    _replace(axis, node, nodes, new, rank=axis.rank(value, node) - 1 + rank - 1)


def _concat(axis: RowsAxis, node: ir.Node) -> None:
    """``Concat`` with values that are the same for all rows, which are repeated."""
    inputs = [value for value in node.inputs if value is not None]
    if any(axis.carries(value) for value in inputs):
        raise axis.refusal(node)
    first = next(value for value in inputs if axis.has_rows(value))
    rank = axis.rank(first, node)
    nodes = axis.tape(node)
    ones = nodes.constant("ones", [1] * rank)
    shape = nodes.op("Concat", axis.count(nodes, first), ones, attributes={"axis": 0})
    for index, value in enumerate(inputs):
        new = value if axis.has_rows(value) else nodes.unsqueeze(value, 0)
        node.replace_input_with(index, nodes.op("Expand", new, shape))
    axis.graph.insert_before(node, nodes.nodes)
    number = node.attributes.get_int("axis", 0)
    node.attributes["axis"] = ir.AttrInt64("axis", number + 1 if number >= 0 else number)
    _mark(axis, node, rank, inputs)


def _expand(axis: RowsAxis, node: ir.Node) -> None:
    """``Expand``: the batch may begin here."""
    value, sizes = _only_first(axis, node), node.inputs[1]
    rank, own = _length(sizes), axis.rank(value, node)
    if sizes is None or rank is None:
        raise axis.refusal(node)
    nodes = axis.tape(node)
    if axis.values.sized_by_batch(sizes):
        if own > rank:
            raise axis.refusal(node)
        rows = nodes.squeeze(value, 1) if own == rank else axis.aligned(nodes, value, rank - 1, own)
        count = nodes.op("Slice", sizes, nodes.constant("from", [0]), nodes.constant("to", [1]))
        new = nodes.op("Expand", axis.repeated(nodes, rows, count), sizes)
        return _replace(axis, node, nodes, new, rank=None)
    rank = max(rank, own)
    full = nodes.op("Concat", axis.count(nodes, value), sizes, attributes={"axis": 0})
    new = nodes.op("Expand", axis.aligned(nodes, value, rank, own), full)
    return _replace(axis, node, nodes, new, rank=rank)


def _tile(axis: RowsAxis, node: ir.Node) -> None:
    """``Tile``: the batch may begin here, as rows of all parts of the value."""
    value, repeats = _only_first(axis, node), node.inputs[1]
    rank = axis.rank(value, node)
    if repeats is None:
        raise axis.refusal(node)
    nodes = axis.tape(node)
    one = nodes.constant("one", [1])
    if not axis.values.sized_by_batch(repeats):
        full = nodes.op("Concat", one, repeats, attributes={"axis": 0})
        return _replace(axis, node, nodes, nodes.op("Tile", value, full), rank=rank)
    first = nodes.op("Slice", repeats, nodes.constant("from", [0]), one)
    others = nodes.op("Slice", repeats, one, nodes.constant("to", [_END]))
    tiled = nodes.op("Tile", value, nodes.op("Concat", one, one, others, attributes={"axis": 0}))
    rows = axis.repeated(nodes, tiled, first)
    shape = nodes.op("Concat", nodes.constant("all", [-1]), nodes.shape(rows, 2), attributes={"axis": 0})
    return _replace(axis, node, nodes, nodes.op("Reshape", rows, shape), rank=None)


def _shape(axis: RowsAxis, node: ir.Node) -> None:
    """``Shape``: what reads the sizes expects those without the rows."""
    value = _only_first(axis, node)
    rank = axis.rank(value, node)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    start, end = (number + rank if number < 0 else min(number, rank) for number in (start, end))
    nodes = axis.tape(node)
    _replace(axis, node, nodes, nodes.shape(value, start + 1, end + 1), rank=None)


def _attention(axis: RowsAxis, node: ir.Node) -> None:
    """Attention whose additive mask, and nothing else, has rows."""
    index = 3 if node.domain == "" else 5
    query, mask = node.inputs[0], node.inputs[index] if len(node.inputs) > index else None
    others = [value for number, value in enumerate(node.inputs) if number != index]
    if query is None or mask is None or any(axis.has_rows(value) for value in others) or not axis.carries(query):
        raise axis.refusal(node)
    nodes = axis.tape(node)
    own = axis.rank(mask, node)
    if own > 4:
        raise axis.refusal(node)
    rows = nodes.squeeze(mask, 1) if own == 4 else axis.aligned(nodes, mask, 3, own)
    node.replace_input_with(index, axis.repeated(nodes, rows, nodes.shape(query, 0, 1)))
    axis.graph.insert_before(node, nodes.nodes)


_ELEMENTWISE = [
    "Abs", "Add", "And", "BiasGelu", "BitShift", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "PRelu",
    "QuickGelu", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Tanh", "Where", "Xor",
]  # fmt: skip
_REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
]  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("MatMul", "FusedMatMul", "MatMulInteger"), _matrix_product),
    **dict.fromkeys(
        (
            "MatMulNBits",
            "DynamicQuantizeMatMul",
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
        ),
        _last_axis,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _one_axis(-1)),
    **dict.fromkeys(_REDUCTIONS, _with_axes(0)),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "Concat": _concat,
    "DynamicQuantizeLinear": _quantize,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _with_axes(-1),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _with_axes(1),
}
"""Operator → its rule."""
