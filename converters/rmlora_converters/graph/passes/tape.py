"""Makes nodes: operators are written like function calls, and named after one scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Tape"]


class Tape:
    """Records new nodes in order, for the caller to insert into the graph. Constants are registered immediately.

    Args:
        graph: the graph that gets the constants.
        scope: prefix for the names of all nodes and constants.
    """

    def __init__(self, graph: ir.Graph, scope: str) -> None:
        self.graph, self.scope = graph, scope
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Append a node with one output, and return the output, which has the name of the node."""
        full = f"{self.scope}/{name or f'{op_type}_{len(self.nodes)}'}"
        node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, name=full)
        node.outputs[0].name = full
        self.nodes.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """Append a node that splits the last axis of ``value`` into parts of ``sizes``, and return the parts."""
        full = f"{self.scope}/Split_{len(self.nodes)}"
        widths = self.constant(f"Split_{len(self.nodes)}.widths", list(sizes))
        node = ir.node("Split", [value, widths], {"axis": -1}, num_outputs=len(sizes), name=full)
        for number, part in enumerate(node.outputs):
            part.name = f"{full}_{number}"
        self.nodes.append(node)
        return list(node.outputs)

    def constant(self, name: str, value: npt.ArrayLike) -> ir.Value:
        """Return an initializer with that value. The same name in the same scope gives the same initializer."""
        full = f"{self.scope}/{name}"
        if full in self.graph.initializers:
            return self.graph.initializers[full]
        tensor = ir.tensor(np.asarray(value), name=full)
        initializer = ir.Value(
            name=full, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(initializer)
        return initializer
