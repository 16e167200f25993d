"""Reads and writes ONNX models. Large weights go to a separate file, so models over 2 GB work too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import onnx_ir as ir

from rmlora.confine import confine
from rmlora.errors import InputError, RMLoRAError, some_of
from rmlora.library_calls import library_call, reason_of
from rmlora.readable import is_readable_file
from rmlora_converters.graph.files.check_graph import check_graph, tensors_of

__all__ = ["INLINE_LIMIT", "external_files", "external_tensors", "load_model", "save_model", "to_bytes"]

_ADVICE = "export or download it again"
_MAX_PROTOBUF = 1 << 31
"""Bytes of the largest message that protobuf can hold."""
INLINE_LIMIT = 1 << 20
"""A model with at most this many bytes of weights is one file."""


def load_model(path: Path) -> ir.Model:
    """Read a graph. Its weights are read when they are used.

    Raises:
        InputError: the file, or a file with its weights, is missing, damaged, or may not be read, or it names one outside its
            directory.
    """
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.onnx"))
        raise InputError(
            f"{path} is a directory: give the graph in it"
            + (f", as {some_of([str(path / name) for name in found])}." if found else ", of which there is none.")
        )
    if not is_readable_file(path):
        raise InputError(f"ONNX model not found: {path} does not exist.")
    if path.stat().st_size > _MAX_PROTOBUF:
        raise InputError(
            f"{path} has more than 2 GB, which no ONNX model has: larger ones keep weights in another file."
        )
    with (
        library_call(lambda reason: InputError(f"{path} cannot be read as an ONNX model ({reason}): {_ADVICE}.")),
        _quiet(),
    ):
        model = ir.load(path)
    check_graph(model, path)
    _check_external(model, path)
    return model


def external_files(path: Path) -> list[str]:
    """Return the files, relative to its directory, in which the graph at ``path`` keeps its weights.

    Check a graph with this before other libraries open it: some versions of them read any file that it names.

    Raises:
        InputError: as :func:`load_model`.
    """
    names = {str(tensor.location) for tensor in external_tensors(load_model(path))}
    return sorted({PurePath(name).as_posix() for name in names})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnx_ir, which logs what is wrong with a graph and goes on; :func:`check_graph` refuses it."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_external(model: ir.Model, path: Path) -> None:
    """Check that the files with the weights of ``model`` are there, inside its directory, and long enough.

    Raises:
        InputError: one is not.
    """
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model):
        name = str(tensor.location)
        if name not in sizes:
            file = confine(path.parent, name, where=path)
            if not is_readable_file(file):
                raise InputError(f"{path} keeps its weights in {file}, which is missing: put it next to the model.")
            sizes[name] = file.stat().st_size
            if (tensor.offset or 0) + tensor.nbytes <= sizes[name]:
                _try_external(tensor, path, file)
        if (tensor.offset or 0) + tensor.nbytes > sizes[name]:
            raise InputError(
                f"{path} keeps its weights in {name}, which cannot be read to the end of '{tensor.name}': it is truncated, get "
                "it again."
            )


def _try_external(tensor: ir.ExternalTensor, path: Path, file: Path) -> None:
    """Read one weight of a file, which onnx_ir refuses for a hard link, as that could be to any file."""

    def refuse(reason: str) -> InputError:
        return InputError(
            f"{path} keeps its weights in {file}, which cannot be read ({reason}): put a copy next to the model."
        )

    with library_call(refuse):
        tensor.numpy()
        tensor.release()


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors of ``model`` whose content is in other files: initializers and attributes, in all its graphs."""
    yield from (tensor for tensor in tensors_of(model) if isinstance(tensor, ir.ExternalTensor))


def save_model(model: ir.Model, path: Path, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Write ``model`` to ``path``, and its weights to ``<path>.data`` if they exceed :data:`INLINE_LIMIT`.

    The graph names the data file relative to itself, so the two can be moved together. Lazy weights are computed one at
    a time while they are written.

    Args:
        model: the graph.
        path: file to write.
        on_progress: called with (bytes written, total bytes).

    Returns:
        The size of all weights in bytes.
    """
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def written(tensor: ir.TensorProtocol, _info: Any) -> None:
        nonlocal done
        done += tensor.nbytes
        if on_progress is not None:
            on_progress(done, total)

    try:
        if total > INLINE_LIMIT:
            ir.save(model, path, external_data=f"{path.name}.data", callback=written)
        else:
            ir.external_data.load_to_model(model)  # otherwise it would still refer to the files it was read from
            ir.save(model, path)
    except Exception as error:  # noqa: BLE001 - onnx_ir wraps whatever a lazy tensor raises
        raise _cause(error) from None
    return total


def to_bytes(model: ir.Model) -> bytes:
    """Return ``model`` serialized. Weights in other files stay there, and the result names those files."""
    with library_call(lambda reason: InputError(f"The graph cannot be written ({reason}): {_ADVICE}.")):
        return bytes(ir.to_proto(model).SerializeToString())


def _cause(error: BaseException) -> BaseException:
    """Return the error of rmlora or of the operating system that onnx_ir wrapped, or one that says what onnx_ir said."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, (RMLoRAError, OSError)):
        inner = inner.__cause__ or inner.__context__
    return inner or InputError(f"The graph cannot be written ({reason_of(error)}): {_ADVICE}.")
