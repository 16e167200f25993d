"""Writing a graph: weights beside it unless they are small, so that models over 2 GB pass (no torch)."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

__all__ = ["INLINE_LIMIT", "save_model"]

INLINE_LIMIT = 1 << 20
"""Bytes of weights up to which a model stays one file."""


def save_model(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; over :data:`INLINE_LIMIT` its weights go to ``<path>.data``.

    The graph names the data file relative to itself, so the two can move together.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > INLINE_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)  # else it would go on naming the files it was read from
        ir.save(model, path)
