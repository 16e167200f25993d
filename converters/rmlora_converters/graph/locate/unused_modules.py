"""Modules that an adapter changes and a graph does not have: exporters leave out what no output depends on.

PEFT's ``all-linear`` adapts every linear module, poolers and unused heads too. One rule decides, for merged graphs and branches
alike, whether a weight that was not found may be left out: only if every initializer that could hold it holds something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.tensors import FLOATING, TensorInfo
from rmlora_converters.graph.locate.contents import occurrences

__all__ = ["is_absent"]

AnyArray = npt.NDArray[Any]


def is_absent(shape: tuple[int, ...], weights: Mapping[str, ir.Value], base: Checkpoint) -> bool:
    """Return True if no initializer can hold a matrix of ``shape``, outputs first.

    An initializer that is large enough is ruled out if tensors of the base that have the same number of inputs make up all of
    it. Quantized, scaled or otherwise changed weights are not ruled out, so nothing is left out of such a graph by mistake.

    Args:
        shape: ``[out, in]``; other shapes are never absent.
        weights: name → initializer that the graph reads.
        base: the checkpoint that the graph was exported from.
    """
    if len(shape) != 2:
        return False
    candidates = {name: value for name, value in weights.items() if _may_hold(value, shape)}
    if any(_tensor(value).dtype not in _FLOATS for value in candidates.values()):
        return False
    unexplained = {name: list(_views(_tensor(value).numpy(), shape)) for name, value in candidates.items()}
    covered = {name: [np.zeros(len(view), dtype=bool) for view in views] for name, views in unexplained.items()}
    for info in _matrices(base, shape[1]):
        if not unexplained:
            return True
        stored = info.read()
        for name, views in unexplained.items():
            for view, rows in zip(views, covered[name], strict=True):
                _cover(view, stored, rows)
        unexplained = {
            name: views for name, views in unexplained.items() if not any(rows.all() for rows in covered[name])
        }
    return not unexplained


_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


def _may_hold(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Return True if ``value`` is large enough for a matrix of ``shape``; packed types hold two elements in a byte."""
    tensor = _tensor(value)
    stored = tuple(tensor.shape.numpy())
    if tensor.dtype not in _FLOATS:
        return (
            len(stored) > 1
            and tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL)
            and 2 * math.prod(stored) >= math.prod(shape)
        )
    return len(stored) == 2 and any(view[0] >= shape[0] and view[1] == shape[1] for view in (stored, stored[::-1]))


def _views(stored: AnyArray, shape: tuple[int, ...]) -> Iterator[AnyArray]:
    """Yield ``stored`` in the orientations in which its rows could be outputs of a matrix of ``shape``."""
    for view in (stored, stored.T):
        if view.shape[1] == shape[1] and view.shape[0] >= shape[0]:
            yield view


def _matrices(base: Checkpoint, fan_in: int) -> Iterator[TensorInfo]:
    for info in base.tensors.values():
        if len(info.shape) == 2 and fan_in in info.shape and info.dtype in FLOATING:
            yield info


def _cover(view: AnyArray, stored: AnyArray, rows: npt.NDArray[np.bool_]) -> None:
    """Mark the rows of ``view`` that are rows of ``stored``, in either orientation."""
    for matrix in (stored, stored.T):
        if matrix.shape[1] != view.shape[1] or len(matrix) > len(view):
            continue
        for transposed, start in occurrences("linear", view, matrix):
            if not transposed:
                rows[start : start + len(matrix)] = True


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")
    return value.const_value
