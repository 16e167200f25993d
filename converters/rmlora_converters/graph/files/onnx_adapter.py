"""onnxruntime's own adapter files, which its ``LoraAdapter`` feeds from any language (no torch).

The format holds names and tensors only: neither rank nor base nor labels. A bundle's manifest has those.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError, require
from rmlora.storage import atomic_file
from rmlora_converters.graph.files.buffer_pool import BufferPool

__all__ = ["AdapterArrays", "Entry", "Layout", "read_onnx_adapter", "write_onnx_adapter"]

AnyArray = npt.NDArray[Any]

_IDENTIFIER = b"TORT"
"""Bytes 4 to 8 of such a file."""

_DTYPES = {
    1: np.dtype(np.float32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    16: np.dtype(ml_dtypes.bfloat16),  # written by onnxruntime's other interfaces
}
"""ONNX's number of a type → numpy's."""
_blocks = BufferPool()
_INT32, _UINT32, _UINT16 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<H")


def write_onnx_adapter(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays by input name to ``path``, atomically.

    Raises:
        InputError: an array is of a type that onnxruntime's Python interface cannot write.
    """
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError(
                f"'{name}' is {array.dtype}, which onnxruntime cannot write to {path}: export the graph with --precision "
                "fp32 or fp16."
            )
    made = ort.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    with atomic_file(path) as temporary:
        made.export_adapter(str(temporary))


def read_onnx_adapter(path: Path) -> AdapterArrays:
    """Return what :func:`write_onnx_adapter` wrote to ``path``.

    Read here and not by onnxruntime, whose reader maps the file, and into memory that is used again: a bank that takes and
    drops adapters all the time would else pay for page faults, several times what reading costs.

    Raises:
        InputError: the file is missing or is no adapter file.
    """
    content = _read(path)
    try:
        layout = _layouts.get(len(content))
        if layout is None or not layout.fits(content):
            layout = Layout.of(content)
            if len(_layouts) >= _KNOWN:
                _layouts.clear()
            _layouts[len(content)] = layout
        return AdapterArrays(content, layout)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as an .onnx_adapter file ({reason}): add the adapter again.") from None


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb", buffering=0) as file:
            content = _blocks.take(os.fstat(file.fileno()).st_size)
            done, view = 0, content.data
            while done < len(content):  # a block's old content must not pass for the file's
                count = file.readinto(view[done:])
                if not count:
                    raise InputError(f"{path} became shorter while it was read: add the adapter again.")
                done += count
            return content
    except FileNotFoundError:
        raise InputError(f"Adapter file not found: {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None


class Entry(NamedTuple):
    """Where an array lies in a file, and what it is."""

    start: int
    """Its first byte."""
    stop: int
    """The byte after its last."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies where in a file; adapters of one graph and rank differ in the arrays' content only, and share it."""

    entries: Mapping[str, Entry]
    gaps: Sequence[slice]
    """All that is not an array's content."""
    skeleton: bytes
    """What lies in the gaps."""

    @classmethod
    def of(cls, content: npt.NDArray[np.uint8]) -> Layout:
        """Find out; errors as those of :func:`_entries`."""
        entries = dict(_entries(content))
        starts = sorted(entry.start for entry in entries.values())
        stops = sorted(entry.stop for entry in entries.values())
        if any(start < stop for start, stop in zip(starts[1:], stops, strict=False)):
            raise ValueError("arrays overlap")
        gaps = [slice(begin, end) for begin, end in zip([0, *stops], [*starts, len(content)], strict=True)]
        return cls(entries, gaps, _within(content, gaps))

    def fits(self, content: npt.NDArray[np.uint8]) -> bool:
        """Whether a file of the same length has this layout."""
        return _within(content, self.gaps) == self.skeleton


class AdapterArrays(Mapping[str, AnyArray]):
    """The arrays of a file by name, in one block of memory; a view of it is made whenever one is asked for."""

    def __init__(self, content: npt.NDArray[np.uint8], layout: Layout) -> None:
        self.layout = layout
        self.data: memoryview = content.data
        """The whole file. What is copied from here is copied without the interpreter's lock being let go of."""
        self._content = content

    def __getitem__(self, name: str) -> AnyArray:
        start, _, dtype, shape = self.layout.entries[name]
        array: AnyArray = np.ndarray(shape, dtype, self._content, start)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)


def _within(content: npt.NDArray[np.uint8], parts: Sequence[slice]) -> bytes:
    data = content.data
    return b"".join([data[part] for part in parts])


_KNOWN = 64
_layouts: dict[int, Layout] = {}
"""Length of a file → the layout last seen; reading one takes a hundred times as long as recognizing it."""


def _entries(content: npt.NDArray[np.uint8]) -> Iterator[tuple[str, Entry]]:
    """Yield what lies where in a flatbuffer of onnxruntime's ``adapter_schema.fbs``.

    A table begins with the distance back to its vtable, which holds the place of every field; the root table's fourth
    field lists the parameters, tables with name, dims, data type (ONNX's number) and bytes.
    """
    buffer = content.data
    if bytes(buffer[4:8]) != _IDENTIFIER:
        raise ValueError("it has not the identifier of one")

    def field(table: int, number: int) -> int:
        """Return the place that a field of a table points to; it is an error if it has none."""
        vtable = table - _INT32.unpack_from(buffer, table)[0]
        location = table + _UINT16.unpack_from(buffer, vtable + 4 + 2 * number)[0]
        if location == table:
            raise ValueError("a field is missing")
        return int(location)

    def pointed(location: int) -> tuple[int, int]:
        """Return start and length of the vector that a place refers to."""
        start = location + _UINT32.unpack_from(buffer, location)[0]
        return start + 4, _UINT32.unpack_from(buffer, start)[0]

    start, count = pointed(field(_UINT32.unpack_from(buffer, 0)[0], 3))
    for location in range(start, start + 4 * count, 4):
        table = location + _UINT32.unpack_from(buffer, location)[0]
        first, length = pointed(field(table, 0))
        name = bytes(buffer[first : first + length]).decode()
        first, rank = pointed(field(table, 1))
        shape = struct.unpack_from(f"<{rank}q", buffer, first)
        dtype = _DTYPES[_INT32.unpack_from(buffer, field(table, 2))[0]]
        first, length = pointed(field(table, 3))
        if first + length > len(content):
            raise ValueError("it is cut short")
        if length != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"'{name}' has {length} bytes, which its shape {list(shape)} does not fit")
        yield name, Entry(first, first + length, dtype, shape)
