"""Makes nodes: operators are written like function calls, and named after one scope.

The graph keeps its own operator set, because raising it would change what some of its operators mean. Where the form of an
operator changed, the tape writes the one that this set has; :data:`OLDEST_OPSET` is the oldest that all of them exist in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["OLDEST_OPSET", "Tape"]

OLDEST_OPSET = 11
"""The first operator set with ``Range``, negative axes and ``CumSum``; exporters have written it since 2019."""


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

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators in this graph."""
        return self.graph.opset_imports.get("", 0)

    def shape(self, value: ir.Value, start: int = 0, stop: int | None = None, *, name: str | None = None) -> ir.Value:
        """Append what computes the sizes of the axes ``start`` to ``stop`` (None: all that follow)."""
        if start == 0 and stop is None:
            return self.op("Shape", value, name=name)
        if self.opset >= 15:
            return self.op("Shape", value, name=name, attributes={"start": start, **({"end": stop} if stop else {})})
        end = np.iinfo(np.int64).max if stop is None else stop
        ends = [self.constant(f"axis_{axis}", [axis]) for axis in (start, end)]
        return self.op("Slice", self.op("Shape", value), *ends, name=name)

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        """Append a node that adds an axis of size 1."""
        return self._with_axes("Unsqueeze", value, axis, {})

    def squeeze(self, value: ir.Value, axis: int) -> ir.Value:
        """Append a node that removes an axis of size 1."""
        return self._with_axes("Squeeze", value, axis, {})

    def sum(self, value: ir.Value, axis: int, *, keepdims: bool = True, name: str | None = None) -> ir.Value:
        """Append a node that adds up ``value`` over one axis."""
        return self._with_axes("ReduceSum", value, axis, {"keepdims": int(keepdims)}, name)

    def _with_axes(
        self, op_type: str, value: ir.Value, axis: int, attributes: Mapping[str, Any], name: str | None = None
    ) -> ir.Value:
        """Append a node whose axes are an input since operator set 13, and were an attribute before."""
        if self.opset >= 13:
            axes = self.constant(f"axis_{axis}", [axis])
            return self.op(op_type, value, axes, name=name, attributes=attributes)
        return self.op(op_type, value, name=name, attributes={**attributes, "axes": [axis]})

    def split(self, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """Append a node that splits the last axis of ``value`` into parts of ``sizes``, and return the parts."""
        full = f"{self.scope}/Split_{len(self.nodes)}"
        attributes: dict[str, Any] = {"axis": -1}
        inputs = [value]
        if self.opset >= 13:
            inputs.append(self.constant(f"Split_{len(self.nodes)}.widths", list(sizes)))
        else:
            attributes["split"] = list(sizes)
        node = ir.node("Split", inputs, attributes, num_outputs=len(sizes), name=full)
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
