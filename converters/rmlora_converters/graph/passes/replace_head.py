"""Replaces the base's head in a graph with an adapter's, which may have another number of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.consumers import Consumer, head_consumer
from rmlora_converters.graph.locate.uses import stored_value
from rmlora_converters.graph.locate.weights import WeightLocation
from rmlora_converters.graph.passes.rewire import producer_of, replace_uses
from rmlora_converters.graph.passes.tape import Tape
from rmlora_converters.rounding import checked_cast

__all__ = ["replace_head"]

AnyArray = npt.NDArray[Any]


def replace_head(graph: ir.Graph, location: WeightLocation, weight: AnyArray, bias: AnyArray | None) -> None:
    """Replace the head at ``location`` in place.

    Args:
        graph: the graph.
        location: the weight of the base's head.
        weight: ``[labels, in]``.
        bias: ``[labels]``; None is zero.

    Raises:
        AdapterError: the head is not a single product in the graph, its weight or bias is shared, or its type cannot hold a
            value.
    """
    consumer = head_consumer(graph, location)
    value = graph.initializers[location.initializer]
    stored = value.const_value
    if stored is None or location.stop - location.start != stored.shape.numpy()[1 if location.transposed else 0]:
        raise AdapterError(
            f"The head '{location.parameter}' shares its weight with other modules in the graph: merge the checkpoint and export "
            "that."
        )
    dtype = stored.dtype.numpy()
    labels = location.stop - location.start
    content = checked_cast(weight, dtype, location.parameter)
    _fill(value, content.T if location.transposed else content)
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    held = stored_value(consumer.bias) if consumer.bias is not None else None
    known = held.const_value if held is not None else None
    computed = consumer.y.dtype.numpy() if consumer.y.dtype is not None else dtype
    shift = checked_cast(bias, known.dtype.numpy() if known is not None else computed, location.parameter)
    if held is not None and known is not None and len(list(held.uses())) == 1:
        _fill(held, shift)
    elif consumer.bias is not None:
        raise AdapterError(
            f"The head '{location.parameter}' shares its bias with other nodes in the graph, or computes it: merge the checkpoint and export that."
        )
    elif shift.any():  # the exporter left out a bias of zeros
        _add_bias(graph, consumer, shift, location.module)
    if labels != len(weight):
        _resize(consumer.y, labels, len(weight))


def _fill(value: ir.Value, array: AnyArray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


def _add_bias(graph: ir.Graph, consumer: Consumer, bias: AnyArray, path: str) -> None:
    uses = list(consumer.y.uses())
    nodes = Tape(graph, f"{path}.replaced")
    total = nodes.op("Add", consumer.y, nodes.constant("bias", bias))
    total.type, total.shape = consumer.y.type, consumer.y.shape
    graph.insert_after(producer_of(consumer.y), nodes.nodes)
    replace_uses(graph, consumer.y, total, name=f"{path}.replaced/base", uses=uses)


def _resize(y: ir.Value, before: int, now: int) -> None:
    """Change the labels axis of ``y`` and of every value computed from it; other shapes are removed, they may be wrong."""
    for value in _downstream(y):
        if value.shape is not None and value.shape.rank() and value.shape[-1] == before:
            value.shape = ir.Shape([*list(value.shape)[:-1], now])
        elif not value.is_graph_output():
            value.shape = None


def _downstream(value: ir.Value) -> Iterator[ir.Value]:
    queue, seen = [value], set()
    while queue:
        current = queue.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [output for use in current.uses() for output in use.node.outputs]
