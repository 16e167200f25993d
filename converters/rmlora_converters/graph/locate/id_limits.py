"""Which numbers a graph's inputs of ids may hold.

The CPU refuses an id that its table does not have. A GPU looks up zeros for it, and the answer is wrong without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import InputError
from rmlora_converters.graph.locate.uses import uses_of

__all__ = ["check_ids", "id_limits"]

_LOOKUPS = {"Gather", "GatherBlockQuantized"}


def id_limits(model: ir.Model) -> dict[str, int]:
    """Return input → the rows of the smallest table that it looks up in; inputs without a table of known size are left out."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        for node, index in uses_of(value):
            table = node.inputs[0]
            if node.op_type in _LOOKUPS and index == 1 and table is not None and _axis(node) == 0 and table.shape:
                rows = table.shape[0]
                if isinstance(rows, int):
                    limits[str(value.name)] = min(rows, limits.get(str(value.name), rows))
    return limits


def check_ids(inputs: Mapping[str, npt.NDArray[Any]], limits: Mapping[str, int]) -> None:
    """Raise :class:`InputError` if an input holds an id that its table does not have.

    Negative ids count from the end of a table, as in ONNX's ``Gather``.
    """
    for name, rows in limits.items():
        ids = inputs.get(name)
        if ids is not None and ids.size:
            for wrong in (int(np.max(ids)), int(np.min(ids))):
                if not -rows <= wrong < rows:
                    raise InputError(f"'{name}' holds {wrong}, but the model has ids from 0 to {rows - 1} only.")


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("gather_axis" if node.op_type == "GatherBlockQuantized" else "axis", 0)
