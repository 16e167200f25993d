"""Which rows of which stored tensors hold a parameter of a model in memory.

Most parameters are one stored tensor under another name. Some are rows of a tensor that is fused on disk (query, key and value),
some are several stored tensors that are fused in memory (the experts of Mixtral).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Part", "StoredTensor", "parts_from_json", "parts_to_json", "read_parts"]

Array = npt.NDArray[np.generic]


class StoredTensor(Protocol):
    """A tensor on disk, such as a :class:`rmlora.tensors.TensorInfo`."""

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""


@dataclass(frozen=True)
class Part:
    """A block of a parameter, and the rows of a stored tensor that hold it."""

    tensor: str
    """Name of the stored tensor."""
    rows: tuple[int, ...] | None = None
    """Indices of the stored rows, in the parameter's order; None if the whole tensor is meant, in its own order."""
    block: tuple[tuple[int, int], ...] = ()
    """(start, stop) along the first axes of the parameter, as many rows in all as the stored ones; empty if this part is the
    whole parameter."""

    @property
    def is_whole(self) -> bool:
        """True if the parameter is the stored tensor, under another name at most."""
        return self.rows is None and not self.block

    @property
    def slices(self) -> tuple[slice, ...]:
        """The block as an index of the parameter."""
        return tuple(slice(start, stop) for start, stop in self.block)


def read_parts(parts: Sequence[Part], tensors: Mapping[str, StoredTensor]) -> Array:
    """Return the parameter that ``parts`` make up, in the type in which it is stored."""
    if len(parts) == 1 and not parts[0].block:
        return _rows(parts[0], tensors)
    blocks = [(part, _rows(part, tensors)) for part in parts]
    leading = tuple(max(part.block[axis][1] for part in parts) for axis in range(len(parts[0].block)))
    result = np.empty(leading + blocks[0][1].shape[1:], dtype=blocks[0][1].dtype)
    for part, rows in blocks:
        result[part.slices] = rows.reshape(result[part.slices].shape)
    return result


def parts_to_json(parts: Sequence[Part]) -> Any:
    """Return ``parts`` for a JSON file: a name if the parameter is one whole tensor, otherwise a list of objects."""
    if len(parts) == 1 and parts[0].is_whole:
        return parts[0].tensor
    return [
        {
            "tensor": part.tensor,
            **({} if part.rows is None else {"rows": _shorten(part.rows)}),
            **({"block": [list(axis) for axis in part.block]} if part.block else {}),
        }
        for part in parts
    ]


def parts_from_json(value: Any) -> tuple[Part, ...]:
    """Return the parts that :func:`parts_to_json` wrote.

    Raises:
        ValueError: it is not what that function writes.
    """
    if isinstance(value, str):
        return (Part(value),)
    try:
        return tuple(
            Part(
                str(item["tensor"]),
                _lengthen(item["rows"]) if "rows" in item else None,
                tuple((int(start), int(stop)) for start, stop in item.get("block", ())),
            )
            for item in value
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a list of parts: {error}") from None


def _rows(part: Part, tensors: Mapping[str, StoredTensor]) -> Array:
    stored = tensors[part.tensor]
    if part.rows is None:
        return stored.read()
    start, stop = min(part.rows), max(part.rows) + 1
    rows = stored.read(start, stop)
    return rows if part.rows == tuple(range(start, stop)) else rows[np.asarray(part.rows) - start]


def _shorten(rows: tuple[int, ...]) -> Any:
    if rows == tuple(range(rows[0], rows[-1] + 1)):
        return {"start": rows[0], "stop": rows[-1] + 1}
    return list(rows)


def _lengthen(value: Any) -> tuple[int, ...]:
    if isinstance(value, dict):
        return tuple(range(int(value["start"]), int(value["stop"])))
    return tuple(int(row) for row in value)
