"""Writes a safetensors file tensor by tensor and block by block, with only one block in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rmlora.tensors import DTYPES

__all__ = ["ShardEntry", "write_shard"]


@dataclass(frozen=True)
class ShardEntry:
    """The header entry of a tensor to write."""

    name: str
    dtype: str
    """Element type, as safetensors names it."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the content in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def write_shard(
    path: Path, entries: Sequence[ShardEntry], content: Iterable[Iterator[bytes]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file to ``path``.

    Args:
        path: file to create.
        entries: tensors in file order. Wider element types come first, because readers need each tensor aligned to its
            element size.
        content: the bytes of each entry, in blocks.
        metadata: the ``__metadata__`` of the header.

    Raises:
        ValueError: the blocks of a tensor do not add up to its size.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for entry, blocks in zip(entries, content, strict=True):
            written = sum(file.write(block) for block in blocks)
            if written != entry.nbytes:
                raise ValueError(f"Tensor '{entry.name}' has {written} bytes, but its shape needs {entry.nbytes}.")
