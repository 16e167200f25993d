"""Which numbers a graph's inputs of ids may hold.

The CPU refuses an id that its table does not have. A GPU looks up zeros for it, and the answer is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import InputError

__all__ = ["check_ids", "id_limits"]

_LOOKUPS = {"Gather", "GatherBlockQuantized"}
_KEEP_IDS = {"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
"""Operators whose output holds the numbers of their first input."""
_WHOLE_NUMBERS = {ir.DataType.INT32, ir.DataType.INT64}


def id_limits(model: ir.Model) -> dict[str, int]:
    """Return input → the rows of the smallest table that it looks up in; inputs without a table of known size are left out."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        for node in _lookups(value):
            table = node.inputs[0]
            if table is not None and table.shape and _axis(node) in (0, -len(table.shape)):
                rows = table.shape[0]
                if isinstance(rows, int):
                    limits[str(value.name)] = min(rows, limits.get(str(value.name), rows))
    return limits


def _lookups(ids: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that look up ``ids`` in a table, seen through operators that only change their shape or type."""
    for use in ids.uses():
        node = use.node
        if node.op_type in _LOOKUPS and use.idx == 1:
            yield node
        elif use.idx == 0 and (
            node.op_type in _KEEP_IDS
            or (node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 0)) in _WHOLE_NUMBERS)
        ):
            yield from _lookups(node.outputs[0])


def check_ids(inputs: Mapping[str, npt.NDArray[Any]], limits: Mapping[str, int]) -> None:
    """Raise :class:`InputError` if an input holds an id that its table does not have.

    Negative ids count from the end of a table, as in ONNX's ``Gather``.
    """
    for name, rows in limits.items():
        ids = inputs.get(name)
        if ids is not None and ids.size and ids.dtype.kind in "iu":
            for wrong in (int(np.max(ids)), int(np.min(ids))):
                if not -rows <= wrong < rows:
                    raise InputError(f"'{name}' holds {wrong}, but the model has ids from 0 to {rows - 1} only.")


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("gather_axis" if node.op_type == "GatherBlockQuantized" else "axis", 0)
