"""Reading and writing ONNX files: weights beside the graph unless they are small, so that models over 2 GB pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rmlora.errors import InputError, RMLoRAError

__all__ = ["INLINE_LIMIT", "load_model", "save_model", "to_bytes"]

INLINE_LIMIT = 1 << 20
"""Bytes of weights up to which a model stays one file."""


def load_model(path: Path) -> ir.Model:
    """Read a graph; its weights are read when they are used.

    Raises:
        InputError: the file, or the one with its weights, is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"ONNX model not found: {path} does not exist.")
    try:
        model = ir.load(path)
    except Exception as error:  # noqa: BLE001 - protobuf and onnx_ir raise whatever the broken bytes lead to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as an ONNX model ({reason}): export or fetch it again.") from None
    tensors = [value.const_value for value in model.graph.initializers.values()]
    for location, tensor in {
        tensor.path: tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)
    }.items():
        if not Path(location).is_file():
            raise InputError(f"{path} keeps its weights in {location}, which is missing: put it back beside it.")
        try:
            tensor.numpy()
            tensor.release()
        except (ValueError, OSError) as error:  # a link that leads elsewhere, or cut short
            raise InputError(
                f"{path} keeps its weights in {location}, which cannot be read ({error}): put a copy beside it."
            ) from None
    return model


def save_model(model: ir.Model, path: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write ``model`` to ``path``; over :data:`INLINE_LIMIT` its weights go to ``<path>.data``.

    The graph names the data file relative to itself, so the two can move together. Weights are made one at a time
    while they are written.

    Args:
        model: the graph.
        path: file to write.
        progress: called with (bytes written, bytes in all).

    Returns:
        the bytes of all weights.
    """
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def written(tensor: ir.TensorProtocol, _info: Any) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)

    try:
        if total > INLINE_LIMIT:
            ir.save(model, path, external_data=f"{path.name}.data", callback=written)
        else:
            ir.external_data.load_to_model(model)  # else it would go on naming the files it was read from
            ir.save(model, path)
    except Exception as error:  # noqa: BLE001 - onnx_ir wraps whatever a tensor raises while it is made
        raise _cause(error) from None
    return total


def to_bytes(model: ir.Model) -> bytes:
    """Return ``model`` serialized; weights that lie in other files stay there, named as they are in the graph."""
    return bytes(ir.to_proto(model).SerializeToString())


def _cause(error: BaseException) -> BaseException:
    """Return the error of ours, or of the operating system, that onnx_ir has wrapped in its own."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, (RMLoRAError, OSError)):
        inner = inner.__cause__ or inner.__context__
    return inner or error
