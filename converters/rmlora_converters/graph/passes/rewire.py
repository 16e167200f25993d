"""Changing who reads what in a graph; its outputs keep their names."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rmlora.errors import AdapterError
from rmlora_converters.graph.passes.tape import Tape

__all__ = ["producer_of", "replace_node", "replace_uses"]


def producer_of(value: ir.Value) -> ir.Node:
    """Return the node that makes ``value``.

    Raises:
        AdapterError: none does.
    """
    producer = value.producer()
    if producer is None:
        raise AdapterError(f"'{value.name}' should come from a node, but is an input: the graph is damaged.")
    return producer


def replace_uses(
    graph: ir.Graph, old: ir.Value, new: ir.Value, *, name: str, uses: Iterable[ir._core.Usage] | None = None
) -> None:
    """Let what reads ``old`` read ``new``.

    Args:
        graph: in which they are.
        old: read so far.
        new: read from now on.
        name: what ``old`` is called from now on if it is an output of the graph, whose name ``new`` then takes.
        uses: the readers that change, those from before ``new`` was made from ``old``; None takes all.
    """
    for use in list(old.uses() if uses is None else uses):
        use.node.replace_input_with(use.idx, new)
    if old.is_graph_output():
        old.name, new.name = name, old.name
        for number, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[number] = new


def replace_node(graph: ir.Graph, node: ir.Node, nodes: Tape, new: ir.Value) -> None:
    """Put ``nodes`` in the place of ``node``, with ``new`` for its first output, under that one's name."""
    old = node.outputs[0]
    name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, nodes.nodes)
    replace_uses(graph, old, new, name=f"{nodes.scope}/replaced")
    graph.remove(node, safe=True)
    new.name = name
