"""Makes layers that share a weight share it in the graph too.

ALBERT's layers have the same weights. Exporters fold transpositions and pack weights layer by layer, which leaves one copy for
every layer. One adapter changes all of them, and one copy is enough.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from rmlora.checkpoint import Checkpoint
from rmlora.tensors import FLOATING
from rmlora_converters.graph.locate.contents import occurrences
from rmlora_converters.graph.locate.uses import uses_of
from rmlora_converters.graph.passes.rewire import replace_uses

__all__ = ["share_equal_weights"]

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_PROBE = 16
"""How many elements are compared first."""


def share_equal_weights(model: ir.Model, base: Checkpoint) -> int:
    """Replace copies of a weight with one of them, in place; return how many were removed.

    Two modules of the base may have equal weights without sharing them. These stay apart.

    Args:
        model: an export of ``base``.
        base: tells which of its tensors a weight is.
    """
    removed = 0
    for first, *others in _groups(model.graph):
        if len(_tensors_at_start(first, base)) != 1:
            continue
        for value in others:
            replace_uses(model.graph, value, first, name=f"{value.name}/shared")
            model.graph.initializers.pop(str(value.name))
            removed += 1
    return removed


def _groups(graph: ir.Graph) -> Iterator[list[ir.Value]]:
    """Yield the initializers that hold the same matrix and are used in the same way."""
    inputs = set(graph.inputs)
    alike: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype not in _FLOATS
            or len(tensor.shape) != 2
            or value in inputs
            or not value.uses()
        ):
            continue
        if value.is_graph_output():
            continue
        looked_up = any(node.op_type == "Gather" for node, _ in uses_of(value))
        probe = np.asarray(tensor.numpy()).reshape(-1)[:_PROBE].tobytes()
        alike.setdefault((tuple(tensor.shape.numpy()), tensor.dtype, looked_up, probe), []).append(value)
    for values in alike.values():
        while len(values) > 1:
            content = values[0].const_value.numpy()  # type: ignore[union-attr]  # checked above
            same = [value for value in values if np.array_equal(value.const_value.numpy(), content)]  # type: ignore[union-attr]
            if len(same) > 1:
                yield same
            values = [value for value in values if value not in same]


def _tensors_at_start(value: ir.Value, base: Checkpoint) -> list[str]:
    """Return the names of the base's tensors with which ``value`` begins; several if modules have equal weights."""
    stored = value.const_value.numpy()  # type: ignore[union-attr]  # checked by _groups
    return [
        name
        for name, info in base.tensors.items()
        if len(info.shape) == 2
        and info.dtype in FLOATING
        and set(info.shape) & set(stored.shape)
        and any(start == 0 for content in _both(info.read()) for _, start in occurrences("linear", stored, content))
    ]


def _both(content: np.ndarray) -> Iterator[np.ndarray]:
    yield content
    if content.shape[0] != content.shape[1]:
        yield content.T
