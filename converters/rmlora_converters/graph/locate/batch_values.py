"""Tells which values of a graph have a batch axis and which one it is, by following the data and the batch size through it.

Most values have it first, and XLNet's second. Others are the same for all rows, such as position tables and the relative positions of DeBERTa and Swin, even
if they pass through adapted modules. ``B``, the batch size, reaches them only where they are repeated for every row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.locate.uses import captured_values, constant_input

__all__ = ["BatchValues"]

_MAKES_SIZE = {"Expand": 1, "ConstantOfShape": 0, "Tile": 1, "Reshape": 1}
"""Operators whose output has the size that an input says → the index of this input."""
_KEEPS = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten"}
"""Operators that keep the elements of a list of sizes."""
_LONGEST = 8
"""Axes that are assumed where the number is not known; only the first can be the batch."""

Sizes = tuple[bool, ...]
"""For each element of a list of sizes: True if it depends on the batch size."""


class BatchValues:
    """The values of a graph of which one axis is the batch, or a multiple of it with all parts of a row together."""

    def __init__(self, graph: ir.Graph) -> None:
        self._axes = {value: 0 for value in graph.inputs if value.name not in graph.initializers}
        self._sizes: dict[ir.Value, Sizes] = {}
        shape = graph.inputs[0].shape if graph.inputs else None
        name = getattr(shape[0], "value", None) if shape else None
        self._symbol = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w.])") if name else None
        for node in graph:
            self._visit(node)

    def carries(self, value: ir.Value) -> bool:
        """Return True if ``value`` has a batch axis; False if it is the same for all rows."""
        return value in self._axes

    def axis(self, value: ir.Value) -> int:
        """Return the index of the batch axis of ``value``, which has one."""
        return self._axes[value]

    def sized_by_batch(self, value: ir.Value) -> bool:
        """Return True if the first element of ``value``, a list of sizes, depends on the batch size."""
        return any(self._sizes.get(value, ())[:1])

    def add(self, value: ir.Value, *, like: ir.Value) -> None:
        """Record a new value that has the axes of ``like``."""
        if like in self._axes:
            self._axes[value] = self._axes[like]

    def _visit(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        inputs += captured_values(node)
        if node.op_type in ("Shape", "Size"):
            self._sizes[node.outputs[0]] = self._shape_of(node)
            return
        sizes = self._sizes_of(node)
        if sizes is not None:
            self._sizes[node.outputs[0]] = sizes
        index = _MAKES_SIZE.get(node.op_type)
        made = node.inputs[index] if index is not None and index < len(node.inputs) else None
        if (
            any(value in self._axes for value in inputs)
            or (made is not None and self.sized_by_batch(made))
            or (node.op_type == "Range" and any(map(self.sized_by_batch, inputs)))
        ):
            for value in node.outputs:
                if value.shape is None or value.shape.rank() != 0:
                    self._axes[value] = self._axis_of(value, node, inputs)

    def _axis_of(self, value: ir.Value, node: ir.Node, inputs: Sequence[ir.Value]) -> int:
        """Return the batch axis of an output of ``node``: the one with the batch's name, else by what the node does."""
        if value.shape is not None and self._symbol is not None:
            named = [number for number, size in enumerate(value.shape) if self._symbol.search(str(size))]
            if named:
                return named[0]
        known = next((self._axes[source] for source in inputs if source in self._axes), 0)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            order = list(node.attributes["perm"].as_ints())
            return order.index(known) if known in order else 0
        return known

    def _shape_of(self, node: ir.Node) -> Sizes:
        value = node.inputs[0]
        carries = value is not None and value in self._axes
        if node.op_type == "Size":
            return (carries,)
        rank = value.shape.rank() if value is not None and value.shape is not None else _LONGEST
        sizes = (carries, *[False] * (rank - 1)) if rank else ()
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
        return sizes[start:end]

    def _sizes_of(self, node: ir.Node) -> Sizes | None:
        """Return which elements of the output depend on the batch size; None if no input holds sizes."""
        known = [self._sizes.get(value) if value is not None else None for value in node.inputs]
        if all(sizes is None for sizes in known):
            return None
        first = known[0]
        if node.op_type in _KEEPS:
            return first
        if node.op_type == "Gather" and first is not None:
            index = constant_input(node, 1)
            return _picked(first, index.reshape(-1).tolist()) if index is not None else (any(first),)
        if node.op_type == "Slice" and first is not None and len(node.inputs) > 1:
            start, stop = constant_input(node, 1), constant_input(node, 2)
            step = constant_input(node, 4) if len(node.inputs) > 4 else None
            if start is not None and stop is not None:
                return first[int(start[0]) : int(stop[0]) : int(step[0]) if step is not None else 1]
        if node.op_type == "Concat":
            return tuple(
                item
                for value, sizes in zip(node.inputs, known, strict=True)
                for item in (sizes if sizes is not None else [False] * _length(value))
            )
        return _joined(sizes for sizes in known if sizes is not None)


def _picked(sizes: Sizes, index: Sequence[int]) -> Sizes:
    return tuple(sizes[number] if -len(sizes) <= number < len(sizes) else False for number in index)


def _length(value: ir.Value | None) -> int:
    if value is None or value.shape is None or value.shape.rank() == 0:
        return 1
    size = value.shape[0]
    return size if isinstance(size, int) else 1


def _joined(known: Iterable[Sizes]) -> Sizes:
    """Return the elements of an operator that works element by element; a single element is used for all."""
    arrays = [np.array(sizes, bool) for sizes in known if sizes]
    width = max((len(array) for array in arrays), default=0)
    fitting = [
        np.broadcast_to(array, width) if len(array) in (1, width) else np.full(width, array.any()) for array in arrays
    ]
    return tuple(bool(item) for item in np.any(fitting, axis=0)) if fitting else ()
