"""The tensors of a merged checkpoint: what each is made of, and the rows of it that a merge changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rmlora.adapter import Array, LoraModule
from rmlora.errors import AdapterError
from rmlora.tensors import FLOATING, TensorInfo
from rmlora.weight_parts import Part, read_parts
from rmlora_converters.delta import stores_transposed
from rmlora_converters.shards import ShardEntry

__all__ = [
    "ArraySource",
    "PartsSource",
    "PatchedSource",
    "PlannedTensor",
    "RowUpdate",
    "Source",
    "check_update",
    "replacement_rows",
    "update_of_part",
]


class Source(Protocol):
    """Where the rows of a tensor come from: a file of the base or the adapter."""

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""


@dataclass(frozen=True)
class ArraySource:
    """A tensor held in memory, such as a trained head."""

    array: Array

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""
        return self.array[start:stop] if self.array.ndim else self.array


@dataclass(frozen=True)
class PatchedSource:
    """A stored tensor, some rows of which are replaced."""

    stored: Source
    rows: tuple[tuple[tuple[int, ...], Array], ...]
    """(indices of rows, their new content), several times."""

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""
        block = self.stored.read(start, stop).copy()
        for rows, content in self.rows:
            index = np.asarray(rows) - start
            inside = (index >= 0) & (index < len(block))
            block[index[inside]] = content[inside]
        return block


@dataclass(frozen=True)
class PartsSource:
    """A parameter that is stored as parts of other tensors, such as a tied weight that gets a tensor of its own."""

    parts: tuple[Part, ...]
    tensors: Mapping[str, TensorInfo]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows along the first axis."""
        if len(self.parts) == 1 and self.parts[0].is_whole:
            return self.tensors[self.parts[0].tensor].read(start, stop)
        return read_parts(self.parts, self.tensors)[start:stop]


@dataclass(frozen=True)
class RowUpdate:
    """The update of some rows of a stored tensor."""

    start: int
    stop: int
    module: LoraModule
    """The part of the adapter's module that changes these rows; its outputs are the rows if it is only a part."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result: its header entry, its source, and the updates to add, if any."""

    entry: ShardEntry
    source: Source
    updates: tuple[RowUpdate, ...] = ()


def update_of_part(module: LoraModule, part: Part, shape: tuple[int, ...]) -> RowUpdate:
    """Return what the update of ``module`` adds to the stored tensor of ``part``, which has ``shape``.

    Raises:
        AdapterError: the update does not fit, or the parameter is not a matrix with one row per output.
    """
    if part.is_whole:
        stores_transposed(module, shape)
        return RowUpdate(0, shape[0], module)
    if module.kind != "linear" or len(part.block) > 1:
        raise AdapterError(
            f"The update of '{module.path}' cannot be merged: the base stores its weight as parts of '{part.tensor}', and only "
            "updates of linear modules can be split."
        )
    outputs = module.lora_B[part.slices] if part.block else module.lora_B
    rows = part.rows if part.rows is not None else tuple(range(shape[0]))
    start, stop = min(rows), max(rows) + 1
    if len(outputs) != len(rows) or module.lora_A.shape[1:] != shape[1:]:
        raise AdapterError(
            f"The adapter's update of '{module.path}' has {module.lora_A.shape[1]} inputs and {len(module.lora_B)} outputs, but "
            f"the base stores its weight as {len(rows)} rows of '{part.tensor}' (shape {list(shape)}): this is not the base the "
            "adapter was made for."
        )
    ordered = np.zeros((stop - start, module.rank), dtype=outputs.dtype)
    ordered[np.asarray(rows) - start] = outputs
    return RowUpdate(start, stop, replace(module, lora_B=ordered, fan_in_fan_out=False))


def replacement_rows(value: Array, part: Part, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Array]:
    """Return (rows, content) that make the stored tensor of ``part``, which has ``shape``, hold its block of ``value``.

    Raises:
        AdapterError: the block has another size than the rows.
    """
    rows = part.rows if part.rows is not None else tuple(range(shape[0]))
    block = value[part.slices]
    if block.size != len(rows) * int(np.prod(shape[1:])):
        raise AdapterError(
            f"A tensor that the adapter saved whole has shape {list(value.shape)}, which does not fit '{part.tensor}' of the base "
            f"(shape {list(shape)}): this is not the base the adapter was made for."
        )
    return rows, block.reshape(len(rows), *shape[1:])


def check_update(entry: ShardEntry, changes: Sequence[object], method: str | None) -> None:
    """Raise :class:`AdapterError` if a tensor of this type cannot be changed.

    Args:
        entry: of the tensor.
        changes: updates to add to it, or what replaces it.
        method: how the base says it is quantized; None if it does not.
    """
    if changes and entry.dtype not in FLOATING:
        how = f"with {method}" if method else "quantized"
        raise AdapterError(
            f"The base stores '{entry.name}' as {entry.dtype} ({how}): an update cannot be merged into that; merge into the "
            "unquantized base and quantize the result."
        )
