"""Changes weights while they are written, so that only one of them is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import AdapterError

__all__ = ["lazy_transform"]


def lazy_transform(value: ir.Value, change: Callable[[npt.NDArray[Any]], None]) -> None:
    """Change the content of the initializer ``value`` whenever it is read, usually once, when the model is saved.

    Args:
        value: the initializer.
        change: called with a copy of the current content, which it changes in place.

    Raises:
        AdapterError: the initializer has no content.
    """
    source = value.const_value
    if source is None:
        raise AdapterError(f"Initializer '{value.name}' has no content: the graph is incomplete.")

    def changed() -> ir.TensorProtocol:
        content = np.array(source.numpy())
        change(content)
        return ir.tensor(content, dtype=source.dtype, name=value.name)

    shape = ir.Shape(source.shape.numpy())
    value.const_value = ir.LazyTensor(changed, dtype=source.dtype, shape=shape, name=value.name)
