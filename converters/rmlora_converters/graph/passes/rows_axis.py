"""Gives values that are the same for all rows one copy per adapter row, from where a branch changes them to where the batch begins.

Some adapted modules compute with values that have no batch axis: DeBERTa projects its table of relative positions with the
weights that project the text, and Swin computes its position bias by a small network. Every row of a batch may have another
adapter, so each row has its own such values. They get a new first axis, ``rows``, which is 1 if one adapter is for all rows and
the batch size otherwise. Every operator that reads them is rewritten for this axis
(:mod:`~rmlora_converters.graph.passes.row_rules`), until its other input is the batch: there the new axis becomes part of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.batch_values import BatchValues
from rmlora_converters.graph.locate.uses import captured_values
from rmlora_converters.graph.passes.rewire import replace_uses
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["RowsAxis"]


class RowsAxis:
    """The values of a graph that have the axis ``rows`` in front of their own.

    Args:
        graph: the graph.
        values: tells which values have a batch axis.
        scope: prefix for the names of new nodes.
    """

    def __init__(self, graph: ir.Graph, values: BatchValues, scope: str) -> None:
        self.graph, self.values, self._scope = graph, values, scope
        self._ranks: dict[ir.Value, int] = {}
        self._origins: dict[ir.Value, str] = {}
        self._plain: set[ir.Node] = set()
        self._lifts: set[ir.Node] = set()

    def start(self, value: ir.Value, rank: int, module: str) -> None:
        """Record that ``value`` has the axis ``rows`` before its own ``rank`` axes, because of an adapter of ``module``."""
        self._ranks[value], self._origins[value] = rank, module

    def leave(self, nodes: Iterable[ir.Node]) -> None:
        """Record nodes that are written for the axis ``rows`` already."""
        self._plain.update(nodes)

    def lift(self, nodes: Tape, value: ir.Value, rank: int, module: str) -> ir.Value:
        """Return ``value``, which has ``rank`` axes, with the axis ``rows`` of size 1; as it is, if it turns out to have rows."""
        lifted = nodes.unsqueeze(value, 0)
        lifted.type = value.type
        self._lifts.add(nodes.nodes[-1])
        self.start(lifted, rank, module)
        return lifted

    def spread(self) -> None:
        """Rewrite every node that reads a value with the axis ``rows``, in place.

        Raises:
            AdapterError: a node has no rule, or such a value is an output of the graph.
        """
        from rmlora_converters.graph.passes.row_rules import RULES

        if not self._ranks:
            return
        for node in list(self.graph):
            read = (*node.inputs, *captured_values(node))
            if node in self._plain or not any(self.has_rows(value) for value in read):
                continue
            if node in self._lifts:
                replace_uses(self.graph, node.outputs[0], node.inputs[0], name="")  # type: ignore[arg-type]
                continue
            rule = RULES.get(node.op_type)
            if rule is None:
                raise self.refusal(node)
            rule(self, node)
            for value in node.outputs:
                if self.has_rows(value) and value.is_graph_output():
                    raise self.refusal(node)

    def has_rows(self, value: ir.Value | None) -> bool:
        """Return True if ``value`` has the axis ``rows``."""
        return value is not None and value in self._ranks

    def carries(self, value: ir.Value | None) -> bool:
        """Return True if an axis of ``value`` is the batch."""
        return value is not None and not self.has_rows(value) and self.values.carries(value)

    def rank(self, value: ir.Value, node: ir.Node) -> int:
        """Return the number of axes of ``value``, without ``rows``.

        Raises:
            AdapterError: it is not known.
        """
        if value in self._ranks:
            return self._ranks[value]
        if value.const_value is not None:
            return len(value.const_value.shape)
        if value.shape is None:
            raise self.refusal(node)
        return value.shape.rank()

    def origin(self, node: ir.Node) -> str:
        """Return the module because of which an input of ``node`` has the axis ``rows``."""
        return next((self._origins[value] for value in node.inputs if value in self._origins), "?")

    def origin_of(self, value: ir.Value) -> str:
        """Return the module because of which ``value`` has the axis ``rows``."""
        return self._origins[value]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators in the graph."""
        return self.graph.opset_imports.get("", 0)

    def tape(self, node: ir.Node) -> Tape:
        """Return a tape for nodes to insert before ``node``."""
        return Tape(self.graph, f"{self._scope}/rows/{node.name or node.outputs[0].name}")

    def count(self, nodes: Tape, value: ir.Value) -> ir.Value:
        """Return the size of the axis ``rows`` of ``value``, int64 ``[1]``."""
        return nodes.shape(value, 0, 1)

    def aligned(self, nodes: Tape, value: ir.Value, rank: int, own: int) -> ir.Value:
        """Return ``value`` with axes of size 1 after ``rows``, so that it has ``rank`` axes besides; ``own`` it has already."""
        for _ in range(rank - own):
            value = nodes.unsqueeze(value, 1)
        return value

    def as_batch(self, nodes: Tape, value: ir.Value, other: ir.Value, node: ir.Node) -> ir.Value:
        """Return a value with rows in a form in which it broadcasts with ``other``, whose first axis is the batch.

        Where that axis is a multiple of the batch (windows or heads of an image), each row is repeated for its parts.
        """
        rank, own = self.rank(other, node), self.rank(value, node)
        if own > rank or self.values.axis(other):
            raise self.refusal(node)
        # An axis that both have is of size 1 here: it is the one that the batch broadcasts over.
        value = nodes.squeeze(value, 1) if own == rank else self.aligned(nodes, value, rank - 1, own)
        return value if self._is_batch_alone(other) else self.repeated(nodes, value, nodes.shape(other, 0, 1))

    def repeated(self, nodes: Tape, value: ir.Value, count: ir.Value) -> ir.Value:
        """Return ``value [rows, …]`` with as many rows as ``count``, int64 ``[1]``, says: each row for its part of the batch."""
        zero, one = (nodes.constant(name, np.int64(number)) for name, number in (("zero", 0), ("one", 1)))
        total = nodes.squeeze(count, 0)
        numbers = nodes.op("Range", zero, total, one)
        index = nodes.op("Div", nodes.op("Mul", numbers, self.count(nodes, value)), count)
        return nodes.op("Gather", value, index, attributes={"axis": 0})

    def _is_batch_alone(self, value: ir.Value) -> bool:
        shape, own = value.shape, self.graph.inputs[0].shape
        size = own[0] if own is not None else None
        if shape is None or size is None or isinstance(size, int) or size.value is None:
            return False
        return bool(shape[0] == size)

    def refusal(self, node: ir.Node, module: str | None = None) -> AdapterError:
        """Return the error that says that ``node`` cannot be rewritten."""
        return AdapterError(
            f"'{module or self.origin(node)}' computes something that is the same for all rows of a batch, and the operator {node.op_type} "
            f"('{node.name}') cannot give every row its own: leave that module out of the adapter, or merge the adapter "
            "(--mode merged)."
        )
