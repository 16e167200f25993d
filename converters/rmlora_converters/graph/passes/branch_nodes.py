"""The nodes of a branch for each kind of module. They take the module's input and two factors, and compute the update.

A is ``[rows, in, rank]`` and B ``[rows, rank, out]``. ``rows`` is 1 or the batch size; MatMul broadcasts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.locate.consumers import Consumer
from rmlora_converters.graph.passes.batch_axis import BatchAxis
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["JOINED_OUTPUTS", "Part", "convolution", "head", "joined", "lookup", "product"]

JOINED_OUTPUTS = "both"
"""Name of the node that concatenates the output of the base's head and of the adapter's."""

Factors = tuple[ir.Value, ir.Value]
Part = tuple[tuple[int, int], Factors]
"""(start, stop) of a module in the outputs of a packed product, and its factors."""


def product(
    nodes: Tape,
    x: ir.Value,
    parts: Sequence[Part],
    *,
    width: int,
    fan_in: int,
    batch: BatchAxis,
) -> ir.Value:
    """Return the update ``[batch, n, width]`` of one linear module, or of several that are packed into one product.

    Args:
        nodes: receives the nodes.
        x: input ``[…, in]``; the batch is the slowest axis.
        parts: (start, stop) of each module in the outputs, ascending, and its factors.
        width: number of outputs of the whole product.
        fan_in: number of inputs.
        batch: the batch axis of the graph.
    """
    rows = x if batch.leads(x) else nodes.op("Reshape", x, batch.shape(fan_in))
    return joined(nodes, rows, parts, width=width, fan_in=fan_in)


def joined(nodes: Tape, x: ir.Value, parts: Sequence[Part], *, width: int, fan_in: int) -> ir.Value:
    """Return the updates of all ``parts`` side by side, ``[…, width]``, for the input ``x [rows, n, in]``."""
    updates: list[ir.Value] = []
    done = 0
    for (start, stop), (A, B) in parts:  # noqa: N806 - the paper's symbols
        if start > done:
            updates.append(_zeros(nodes, x, fan_in, start - done, A.dtype))
        updates.append(nodes.op("MatMul", nodes.op("MatMul", x, A), B))
        done = stop
    if done < width:
        updates.append(_zeros(nodes, x, fan_in, width - done, parts[0][1][0].dtype))
    return updates[0] if len(updates) == 1 else nodes.op("Concat", *updates, attributes={"axis": -1})


def _zeros(nodes: Tape, x: ir.Value, fan_in: int, width: int, dtype: ir.DataType | None) -> ir.Value:
    """Return zeros ``[…, width]``, as an update of rank 0, for outputs of a packed product that no adapter changes."""
    kind = (dtype or ir.DataType.FLOAT).numpy()
    empty_A = nodes.constant(f"none_{fan_in}", np.zeros((fan_in, 0), kind))  # noqa: N806
    empty_B = nodes.constant(f"none_to_{width}", np.zeros((0, width), kind))  # noqa: N806
    return nodes.op("MatMul", nodes.op("MatMul", x, empty_A), empty_B)


def lookup(nodes: Tape, ids: ir.Value, A: ir.Value, B: ir.Value, *, tokens: int) -> ir.Value:  # noqa: N803
    """Return the update of an embedding: for every batch row, the rows ``ids`` of its own table ``A [tokens, rank]``, times B.

    The tables of all batch rows are concatenated, so the ids of a batch row are shifted by ``row · tokens``.
    """
    total = nodes.op(
        "Mul",
        nodes.op("Gather", nodes.op("Shape", A), nodes.constant("zero", np.int64(0))),
        nodes.constant("tokens", np.int64(tokens)),
    )
    flat = nodes.op("Flatten", A, attributes={"axis": 2})
    starts = nodes.op("Range", nodes.constant("zero", np.int64(0)), total, nodes.constant("tokens", np.int64(tokens)))
    for _ in range(1, ids.shape.rank() if ids.shape is not None else 2):
        starts = nodes.unsqueeze(starts, 1)
    index = nodes.op("Add", nodes.op("Cast", ids, attributes={"to": ir.DataType.INT64}), starts)
    return nodes.op("MatMul", nodes.op("Gather", flat, index, attributes={"axis": 0}), B)


def convolution(nodes: Tape, consumer: Consumer, A: ir.Value, B: ir.Value, *, batch: BatchAxis) -> ir.Value:  # noqa: N803
    """Return the update ``[batch, out, patches]`` of a convolution over patches that do not overlap.

    Such a convolution is a linear map of each patch, so the image is cut into patches and these are multiplied.
    """
    weight = consumer.node.inputs[1]
    shape = weight.const_value.shape.numpy() if weight is not None and weight.const_value is not None else ()
    channels, kernel = int(shape[1]), [int(size) for size in shape[2:]]
    axes = list(range(2, 2 + len(kernel)))
    counts = nodes.shape(consumer.y, 2, 2 + len(axes))
    covered = nodes.op("Mul", counts, nodes.constant("kernel", kernel))  # a border narrower than a patch is left out
    zeros = nodes.constant("zeros", [0] * len(axes))
    x = nodes.op("Slice", consumer.x, zeros, covered, nodes.constant("axes", axes))
    size = nodes.shape(x, 0, 1)
    split = [size, nodes.constant("channels", [channels])]
    for number, width in enumerate(kernel):
        start, stop = nodes.constant(f"at_{number}", [number]), nodes.constant(f"at_{number + 1}", [number + 1])
        split += [nodes.op("Slice", counts, start, stop), nodes.constant(f"kernel_{number}", [width])]
    cut = nodes.op("Reshape", x, nodes.op("Concat", *split, attributes={"axis": 0}))
    outer, inner = list(range(2, 2 + 2 * len(axes), 2)), list(range(3, 3 + 2 * len(axes), 2))
    patches = nodes.op("Transpose", cut, attributes={"perm": [0, *outer, 1, *inner]})
    rows = nodes.op("Reshape", patches, batch.shape(channels * int(np.prod(kernel))))
    update = nodes.op("MatMul", nodes.op("MatMul", rows, A), B)
    return nodes.op("Transpose", update, attributes={"perm": [0, 2, 1]})


def head(nodes: Tape, x: ir.Value, base: ir.Value, weight: ir.Value, bias: ir.Value, *, labels: int) -> ir.Value:
    """Return ``x · weight + bias``, or ``base`` if the weight is empty.

    Both outputs are concatenated, and the first is sliced off if there is a second. This needs no control flow, and the
    base's own nodes stay unchanged.

    Args:
        nodes: receives the nodes.
        x: input ``[batch, in]`` or ``[batch, n, in]``.
        base: output ``[…, labels]`` of the base's head.
        weight: ``[rows, in, own labels]``, the adapter's; ``rows`` is 1 or the batch size.
        bias: ``[rows, own labels]``.
        labels: number of labels of the base.
    """
    if x.shape is not None and x.shape.rank() == 3:
        own = nodes.op("Add", nodes.op("MatMul", x, weight), nodes.unsqueeze(bias, 1))
    else:
        own = nodes.op("Add", nodes.squeeze(nodes.op("MatMul", nodes.unsqueeze(x, 1), weight), 1), bias)
    both = nodes.op("Concat", base, own, attributes={"axis": -1}, name=JOINED_OUTPUTS)
    given = nodes.op("Cast", nodes.shape(weight, 2, 3), attributes={"to": ir.DataType.BOOL})
    start = nodes.op(
        "Mul", nodes.op("Cast", given, attributes={"to": ir.DataType.INT64}), nodes.constant("labels", [labels])
    )
    end = nodes.constant("end", [np.iinfo(np.int64).max])
    return nodes.op("Slice", both, start, end, nodes.constant("last", [-1]))
