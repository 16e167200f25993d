"""Reads and writes ``.onnx_adapter`` files, the format that onnxruntime's ``LoraAdapter`` loads in any language.

The format holds names and tensors only. Rank, base and labels are in the manifest of the bundle.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError, OutputError, require
from rmlora.file_identity import FileIdentity, status_of
from rmlora.json_files import check_file
from rmlora.readable import permissions_named
from rmlora.storage import atomic_file
from rmlora_converters.graph.files.buffer_pool import BufferPool

__all__ = ["AdapterArrays", "Entry", "Layout", "read_onnx_adapter", "write_onnx_adapter"]

AnyArray = npt.NDArray[Any]

_IDENTIFIER = b"TORT"
"""Bytes 4 to 8 of an adapter file."""

_DTYPES = {
    1: np.dtype(np.float32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    16: np.dtype(ml_dtypes.bfloat16),  # written from languages other than Python
}
"""ONNX's number for a type → the numpy type."""

_MAX_BYTES = 1 << 31
"""A flatbuffer cannot be larger, as its offsets are 32-bit numbers with a sign."""
_buffers = BufferPool()
_INT32, _UINT32, _UINT16 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<H")


def write_onnx_adapter(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write ``arrays`` (input name → array) to ``path`` atomically.

    Raises:
        InputError: onnxruntime's Python interface cannot write the type of an array.
        DependencyError: onnxruntime is not installed.
        OutputError: the file cannot be written.
    """
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError(
                f"'{name}' is {array.dtype}, which onnxruntime cannot write to {path}: export the graph with --precision "
                "fp32 or fp16."
            )
    content = ort.AdapterFormat()
    content.set_adapter_version(1)
    content.set_model_version(1)
    content.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    with atomic_file(path) as temporary:
        try:
            content.export_adapter(str(temporary))
        except RuntimeError as error:
            if shutil.disk_usage(temporary.parent).free < sum(array.nbytes for array in arrays.values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
            reason = str(error).strip().splitlines()[0]
            raise OutputError(f"onnxruntime cannot write {path} ({reason}): choose another directory.") from None


def read_onnx_adapter(path: Path, identity: FileIdentity | None = None) -> AdapterArrays:
    """Return the arrays in the adapter file ``path``.

    The file is read into pooled memory. onnxruntime's own reader maps the file, and an adapter cache that keeps loading and
    evicting would pay for the page faults, several times the cost of reading.

    Args:
        path: of the file.
        identity: compares its content with what it must be.

    Raises:
        InputError: the file is missing or is not an adapter file.
        ChangedFileError: the content is not what ``identity`` knows.
    """
    content = _read(path, identity)
    try:
        layout = _layouts.get(len(content))
        if layout is None or not layout.matches(content):
            layout = Layout.of(content)
            if len(_layouts) >= _MAX_LAYOUTS:
                _layouts.clear()
            _layouts[len(content)] = layout
        return AdapterArrays(content, layout)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as an .onnx_adapter file ({reason}): add the adapter again.") from None


def _read(path: Path, identity: FileIdentity | None) -> npt.NDArray[np.uint8]:
    size = check_file(path, what="Adapter file").st_size
    if size > _MAX_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes, more than any .onnx_adapter file can have: add the adapter again."
        )
    try:
        with permissions_named(path), path.open("rb", buffering=0) as file:
            started, before = time.time_ns(), status_of(file.fileno())
            content = _buffers.take(before.size)
            done, view = 0, content.data
            while done < len(content):  # a short read would leave old content in the buffer
                count = file.readinto(view[done:])
                if not count:
                    raise InputError(f"{path} was truncated while it was read: add the adapter again.")
                done += count
            if identity is not None:
                after = status_of(file.fileno())
                identity.check(before, after, started, lambda: hashlib.sha256(content.data).hexdigest())
            return content
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None


class Entry(NamedTuple):
    """Location, type and shape of an array in a file."""

    start: int
    """Offset of its first byte."""
    stop: int
    """Offset after its last byte."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Locations of all arrays in a file.

    Files of adapters for one graph with one rank differ only in the content of the arrays, so they share one layout.
    """

    entries: Mapping[str, Entry]
    gaps: Sequence[slice]
    """The parts of the file that are not content of an array."""
    skeleton: bytes
    """The bytes of all gaps."""

    @classmethod
    def of(cls, content: npt.NDArray[np.uint8]) -> Layout:
        """Return the layout of a file.

        Raises:
            ValueError, struct.error, KeyError: the file is not a valid adapter file.
        """
        entries = dict(_entries(content))
        starts = sorted(entry.start for entry in entries.values())
        stops = sorted(entry.stop for entry in entries.values())
        if any(start < stop for start, stop in zip(starts[1:], stops, strict=False)):
            raise ValueError("arrays overlap")
        gaps = [slice(begin, end) for begin, end in zip([0, *stops], [*starts, len(content)], strict=True)]
        return cls(entries, gaps, _join(content, gaps))

    def matches(self, content: npt.NDArray[np.uint8]) -> bool:
        """Return True if a file of the same length has this layout."""
        return _join(content, self.gaps) == self.skeleton


class AdapterArrays(Mapping[str, AnyArray]):
    """The arrays of a file by name. All share one buffer, and each access makes a view of it."""

    def __init__(self, content: npt.NDArray[np.uint8], layout: Layout) -> None:
        self.layout = layout
        self.data: memoryview = content.data
        """The whole file. Copying slices of a memoryview does not release the global interpreter lock."""
        self._content = content

    def __getitem__(self, name: str) -> AnyArray:
        start, _, dtype, shape = self.layout.entries[name]
        array: AnyArray = np.ndarray(shape, dtype, self._content, start)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)


def _join(content: npt.NDArray[np.uint8], parts: Sequence[slice]) -> bytes:
    data = content.data
    return b"".join([data[part] for part in parts])


_MAX_LAYOUTS = 64
_layouts: dict[int, Layout] = {}
"""Length of a file → the layout last seen. Parsing a layout takes a hundred times as long as recognizing it."""


def _entries(content: npt.NDArray[np.uint8]) -> Iterator[tuple[str, Entry]]:
    """Yield name and entry of every array in a flatbuffer of onnxruntime's ``adapter_schema.fbs``.

    A table begins with the distance back to its vtable, which holds the offset of every field. The fourth field of the
    root table lists the parameters: tables with name, dims, data type (ONNX's number) and bytes.
    """
    buffer = content.data
    if bytes(buffer[4:8]) != _IDENTIFIER:
        raise ValueError("its identifier is not that of an adapter file")

    def field(table: int, number: int) -> int:
        """Return the offset of a field of a table, which must have it."""
        vtable = table - _INT32.unpack_from(buffer, table)[0]
        offset = table + _UINT16.unpack_from(buffer, vtable + 4 + 2 * number)[0]
        if offset == table:
            raise ValueError("a field is missing")
        return int(offset)

    def vector(offset: int) -> tuple[int, int]:
        """Return start and length of the vector whose reference is at ``offset``."""
        start = offset + _UINT32.unpack_from(buffer, offset)[0]
        return start + 4, _UINT32.unpack_from(buffer, start)[0]

    parameters, count = vector(field(_UINT32.unpack_from(buffer, 0)[0], 3))
    for offset in range(parameters, parameters + 4 * count, 4):
        table = offset + _UINT32.unpack_from(buffer, offset)[0]
        start, length = vector(field(table, 0))
        name = bytes(buffer[start : start + length]).decode()
        start, rank = vector(field(table, 1))
        shape = struct.unpack_from(f"<{rank}q", buffer, start)
        dtype = _DTYPES[_INT32.unpack_from(buffer, field(table, 2))[0]]
        start, length = vector(field(table, 3))
        if start + length > len(content):
            raise ValueError("it is truncated")
        if length != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"'{name}' has {length} bytes, which does not fit its shape {list(shape)}")
        yield name, Entry(start, start + length, dtype, shape)
