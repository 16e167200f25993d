"""Reading single tensors, or some of their rows, from a safetensors file without mapping it into memory.

``safetensors.safe_open`` maps the whole file, so every page read stays counted as the process's memory. To merge a
checkpoint larger than memory, blocks must be released after they are read. The safetensors library still validates the
header; only the reads are our own.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from rmlora.errors import InputError
from rmlora.library_calls import library_call
from rmlora.readable import is_readable_file, permissions_named

__all__ = ["DTYPES", "FLOATING", "TensorFile", "TensorInfo"]

Array = npt.NDArray[np.generic]

DTYPES: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Element type as safetensors names it → numpy type."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""Element types that a low-rank update can be added to."""


@dataclass(frozen=True)
class TensorInfo:
    """Type, shape and byte range of one tensor in the file ``path``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one slice along the first axis; of the whole tensor if it is a scalar."""
        return self.nbytes // self.shape[0] if self.shape and self.shape[0] else self.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows ``start:stop`` along the first axis as an array of the stored type.

        Raises:
            InputError: the element type is unknown, or the file ends early.
        """
        if self.dtype not in DTYPES:
            raise InputError(f"Tensor '{self.name}' in {self.path} has the type {self.dtype}, which is not supported.")
        if not self.shape:
            return np.frombuffer(self.read_bytes(0, self.nbytes), DTYPES[self.dtype]).reshape(())
        rows = range(self.shape[0])[start:stop]
        data = self.read_bytes(rows.start * self.row_bytes, len(rows) * self.row_bytes)
        return np.frombuffer(data, DTYPES[self.dtype]).reshape(len(rows), *self.shape[1:])

    def read_bytes(self, start: int, count: int) -> bytes:
        """Return ``count`` raw bytes, starting ``start`` bytes into the tensor.

        Raises:
            InputError: the file ends early.
        """
        with permissions_named(self.path), open(self.path, "rb") as file:
            file.seek(self.offset + start)
            data = file.read(count)
        if len(data) != count:
            raise self._truncated()
        return data

    def read_into(self, buffer: npt.NDArray[np.uint8], start: int) -> None:
        """Fill ``buffer`` with raw bytes, starting ``start`` bytes into the tensor.

        Raises:
            InputError: the file ends early.
        """
        with permissions_named(self.path), open(self.path, "rb") as file:
            file.seek(self.offset + start)
            if file.readinto(buffer.data) != buffer.nbytes:
                raise self._truncated()

    def _truncated(self) -> InputError:
        return InputError(f"{self.path} ends inside tensor '{self.name}': the file is truncated, fetch it again.")


class TensorFile:
    """One safetensors file.

    Attributes:
        path: the file.
        infos: tensor name → :class:`TensorInfo`, in file order.
        metadata: of the header.
    """

    def __init__(self, path: Path) -> None:
        """Read and validate the header of ``path``.

        Raises:
            InputError: the file is missing, may not be read, is truncated or not safetensors.
        """
        self.path = Path(path)
        if not is_readable_file(self.path):
            raise InputError(f"{self.path} does not exist: give the path of a safetensors file.")

        def refuse(reason: str) -> InputError:
            return InputError(
                f"{self.path} is not a complete safetensors file ({reason}): it is corrupt or truncated, fetch it again."
            )

        with library_call(refuse), safe_open(self.path, framework="numpy"):
            pass  # opening checks sizes, overlaps and the header's format
        with open(self.path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        start = 8 + length
        self.infos: dict[str, TensorInfo] = {
            name: TensorInfo(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                self.path,
                start + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        }
