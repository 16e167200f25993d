"""Connects uses to other values and replaces nodes; the outputs of the graph keep their names."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["producer_of", "replace_node", "replace_uses"]


def producer_of(value: ir.Value) -> ir.Node:
    """Return the node that computes ``value``.

    Raises:
        AdapterError: no node computes it.
    """
    producer = value.producer()
    if producer is None:
        raise AdapterError(f"'{value.name}' should be computed by a node, but is an input: the graph is damaged.")
    return producer


def replace_uses(
    graph: ir.Graph, old: ir.Value, new: ir.Value, *, name: str, uses: Iterable[ir._core.Usage] | None = None
) -> None:
    """Replace all uses of ``old`` with ``new``, the outputs of the graph included.

    Args:
        graph: the graph of both values.
        old: the value to replace.
        new: the value that replaces it.
        name: new name of ``old`` if it is an output of the graph, because ``new`` then takes its name.
        uses: the uses to replace, if not all: those that ``old`` had before ``new`` was computed from it.
    """
    for use in list(old.uses() if uses is None else uses):
        use.node.replace_input_with(use.idx, new)
    if old.is_graph_output():
        old.name, new.name = name, old.name
        for number, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[number] = new


def replace_node(graph: ir.Graph, node: ir.Node, nodes: Tape, new: ir.Value) -> None:
    """Replace ``node`` with ``nodes``, and its first output with ``new``, which takes its name, type and shape."""
    old = node.outputs[0]
    name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, nodes.nodes)
    replace_uses(graph, old, new, name=f"{nodes.scope}/replaced")
    graph.remove(node, safe=True)
    new.name = name
