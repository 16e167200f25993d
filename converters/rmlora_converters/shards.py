"""Writing a safetensors file tensor by tensor, block by block, with memory of one block."""

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
    """One tensor to be written: what the header says of it."""

    name: str
    dtype: str
    """safetensors' name of the element type."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the content."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def write_shard(
    path: Path, entries: Sequence[ShardEntry], content: Iterable[Iterator[bytes]], metadata: Mapping[str, str]
) -> None:
    """Write ``entries`` and the bytes of each to ``path``.

    Args:
        path: file to create.
        entries: in file order; put wider element types first, readers need each tensor aligned to its own.
        content: for each entry, its bytes in blocks.
        metadata: the header's ``__metadata__``.

    Raises:
        ValueError: a tensor's blocks do not add up to its size.
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
                raise ValueError(f"Tensor '{entry.name}' has {written} bytes where its shape says {entry.nbytes}.")
