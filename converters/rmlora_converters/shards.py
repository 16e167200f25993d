"""Writes a safetensors file in pieces and in any order, so that no tensor has to be in memory as a whole."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Self

from rmlora.errors import InputError
from rmlora.storage import flush
from rmlora.tensors import DTYPES

__all__ = ["ShardEntry", "ShardWriter"]

_OTHER_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}
"""Element type that is copied and never computed with → its bits."""


@dataclass(frozen=True)
class ShardEntry:
    """The header entry of a tensor to write."""

    name: str
    dtype: str
    """Element type, as safetensors names it."""
    shape: tuple[int, ...]

    @property
    def element_bits(self) -> int:
        """Size of an element in bits.

        Raises:
            InputError: the element type is unknown.
        """
        if self.dtype in DTYPES:
            return 8 * DTYPES[self.dtype].itemsize
        if self.dtype not in _OTHER_BITS:
            raise InputError(f"The base's tensor '{self.name}' has the type {self.dtype}, which is not supported.")
        return _OTHER_BITS[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the content in bytes."""
        return prod(self.shape) * self.element_bits // 8


class ShardWriter:
    """A safetensors file whose size and places are fixed when it is created; its tensors are written in any order.

    Several threads may write at the same time.

    Attributes:
        starts: tensor name → position of its first byte in the file.
    """

    def __init__(self, path: Path, entries: Sequence[ShardEntry], metadata: Mapping[str, str]) -> None:
        """Create ``path`` and write its header.

        Args:
            path: file to create.
            entries: tensors in file order. Wider element types come first, because readers need each tensor aligned to its
                element size.
            metadata: the ``__metadata__`` of the header.
        """
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        *starts, size = accumulate((entry.nbytes for entry in entries), initial=0)
        for entry, start in zip(entries, starts, strict=True):
            offsets = [start, start + entry.nbytes]
            header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        first = 8 + len(text)
        self.starts = {entry.name: first + start for entry, start in zip(entries, starts, strict=True)}
        self._path = path
        self._lock = threading.Lock()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self.write(0, struct.pack("<Q", len(text)) + text)
        self._file.truncate(first + size)

    def write(self, position: int, content: bytes | memoryview) -> None:
        """Write ``content`` at ``position``."""
        rest = memoryview(content)
        with self._lock:  # the kernel writes to one file at a time as well
            self._file.seek(position)
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        """Have the disk store what was written, after the file was closed."""
        flush(self._path)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()
