"""Changing weights while they are written, so that memory holds one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import AdapterError

__all__ = ["lazy_transform"]


def lazy_transform(value: ir.Value, change: Callable[[npt.NDArray[Any]], None]) -> None:
    """Give the initializer ``value`` a content that is made when it is asked for.

    Args:
        value: the initializer.
        change: is handed a copy of what it holds now, and writes into that.

    Raises:
        AdapterError: it holds nothing.
    """
    source = value.const_value
    if source is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")

    def changed() -> ir.TensorProtocol:
        whole = np.array(source.numpy())
        change(whole)
        return ir.tensor(whole, dtype=source.dtype, name=value.name)

    shape = ir.Shape(source.shape.numpy())
    value.const_value = ir.LazyTensor(changed, dtype=source.dtype, shape=shape, name=value.name)
