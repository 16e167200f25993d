"""The batch axis of a graph: which values have it as their first axis, and its size as a tensor."""

from __future__ import annotations

import onnx_ir as ir

from rmlora_converters.graph.passes.tape import Tape

__all__ = ["BatchAxis"]

_SCOPE = "rmlora/batch"


class BatchAxis:
    """The first axis of the first input of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._input = graph.inputs[0]
        self._size: ir.Value | None = None
        self._shapes: dict[int, ir.Value] = {}

    def leads(self, value: ir.Value) -> bool:
        """Return True if ``value`` is known to have the shape ``[batch, n, width]``."""
        shape, size = value.shape, self._input.shape[0] if self._input.shape else None
        named = isinstance(size, int) or (size is not None and size.value is not None)  # else any two sizes look alike
        return shape is not None and shape.rank() == 3 and named and shape[0] == size

    def shape(self, width: int) -> ir.Value:
        """Return the shape ``[batch, −1, width]`` as a tensor, computed at the start of the graph."""
        if width not in self._shapes:
            nodes = Tape(self._graph, _SCOPE)
            if self._size is None:
                self._size = nodes.shape(self._input, 0, 1, name="size")
            rest = nodes.constant(f"rest_{width}", [-1, width])
            self._shapes[width] = nodes.op("Concat", self._size, rest, attributes={"axis": 0}, name=f"rows_of_{width}")
            size_node = self._size.producer()
            if size_node is not None and size_node.graph is not None:  # inserted for another width before
                self._graph.insert_after(size_node, nodes.nodes)
            else:
                self._graph.insert_before(self._graph[0], nodes.nodes)
        return self._shapes[width]
