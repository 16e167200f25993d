"""Adds inputs that callers may leave out: initializers that an input of the same name overrides (ONNX IR 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

__all__ = ["add_optional_input"]


def add_optional_input(graph: ir.Graph, name: str, shape: Sequence[int | str], default: npt.NDArray[Any]) -> ir.Value:
    """Add an input to ``graph``, and return it.

    Args:
        graph: the graph.
        name: of the input.
        shape: sizes, or names of sizes that differ from call to call.
        default: what the input is if it is not fed.
    """
    tensor = ir.tensor(default, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value
