"""Makes one output of two: models for answers in a text give the scores of beginnings and of ends one by one.

The two are the halves of one projection, ``[rows, tokens, 2]``, which every model splits as its last step. The pass takes the
whole where the graph has it, so that nothing is split at all, and else puts the halves together again.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora_converters.graph.passes.tape import Tape

__all__ = ["join_outputs"]

_SCOPE = "joined"
_PASSES_ON = ("Squeeze", "Identity")


def join_outputs(model: ir.Model, names: tuple[str, str], *, name: str) -> bool:
    """Replace the outputs of ``model`` by one ``[rows, tokens, 2]`` called ``name``, in place.

    Args:
        model: a graph.
        names: of the two outputs ``[rows, tokens]``.
        name: of the new one.

    Returns:
        False if the graph lacks one of the two; it is then unchanged.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    if not set(names) <= outputs.keys():
        return False
    first, second = (outputs[one] for one in names)
    whole = _whole(first, second)
    if whole is None:
        nodes = Tape(model.graph, _SCOPE)
        parts = [nodes.unsqueeze(value, -1) for value in (first, second)]
        whole = nodes.op("Concat", *parts, attributes={"axis": -1})
        whole.type = first.type
        model.graph.extend(nodes.nodes)
    if whole.shape is None and first.shape is not None:
        whole.shape = ir.Shape([*first.shape, 2])
    model.graph.outputs[:] = [whole]
    whole.name = name
    RemoveUnusedNodesPass()(model)
    return True


def _whole(first: ir.Value, second: ir.Value) -> ir.Value | None:
    """Return what was split along its last axis into the two; None if they came about in another way."""
    one, other = _split_part(first), _split_part(second)
    if one is None or other is None or one[0] is not other[0] or (one[1], other[1]) != (0, 1):
        return None
    node = one[0]
    whole = node.inputs[0]
    last = -1 if whole is None or whole.shape is None else whole.shape.rank() - 1
    axis = node.attributes.get_int("axis", 0)
    return whole if len(node.outputs) == 2 and axis in (-1, last) and axis != 0 else None


def _split_part(value: ir.Value) -> tuple[ir.Node, int] | None:
    """Return the node that split something into ``value`` and others, and the number of the part."""
    node = value.producer()
    while node is not None and node.op_type in _PASSES_ON and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return (node, list(node.outputs).index(value)) if node is not None and node.op_type == "Split" else None
