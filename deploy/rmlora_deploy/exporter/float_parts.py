"""What stays in floating point when the products of a graph are rounded."""

from __future__ import annotations

import onnx_ir as ir

from rmlora_converters.graph.passes.insert_branches import BRANCH_SCOPE
from rmlora_converters.graph.passes.pooling import EMBEDDING_NAME

__all__ = ["kept_in_float"]


def kept_in_float(graph: ir.Graph) -> list[str]:
    """Return the names of the nodes of side-branches and heads."""
    branches = [str(node.name) for node in graph if str(node.name).startswith(f"{BRANCH_SCOPE}/")]
    outputs = [output for output in graph.outputs if output.name != EMBEDDING_NAME]  # which has no head
    return branches + [name for output in outputs for name in _head_nodes(output)]


def _head_nodes(output: ir.Value) -> list[str]:
    """Return the names of the last products with a weight before the output."""
    found: list[str] = []
    seen: set[ir.Node] = set()
    queue: list[ir.Value | None] = [output]
    while queue:
        value = queue.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in ("MatMul", "Gemm") and any(
            item is not None and item.is_initializer() for item in node.inputs
        ):
            found += [str(node.name), f"{node.name}_MatMul"]  # the quantizer rewrites a Gemm to a MatMul of this name
        else:
            queue.extend(node.inputs)
    return found
