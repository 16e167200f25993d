"""The buffers of one run whose rows use different adapters: a place for every row in every slot of the graph.

A place keeps what was written to it. Rows of the next batch that use the same adapter go where it still lies, so a
steady mix of adapters costs no copies. Buffers are padded with zeros to the largest rank and number of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from converters.graph.onnx_adapter import AdapterArrays, Layout
from deploy.runtime.bank import Resident
from deploy.runtime.binding import BoundSlots

__all__ = ["Lane", "Occupant"]

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class Occupant:
    """What a row uses: an adapter (None for the base) at a strength."""

    resident: Resident | None
    strength: float = 1.0

    @property
    def key(self) -> tuple[int, float]:
        """Equal for equal contents."""
        return (self.resident.number, self.strength) if self.resident is not None else (0, 1.0)


class Lane:
    """Places for ``rows`` rows; one run at a time.

    Args:
        defaults: slot → what the base has there, ``rows`` = 1.
        rows: places.
        rank: rank the buffers hold.
        labels: head (module path) → outputs the buffers hold.
    """

    def __init__(self, defaults: Mapping[str, AnyArray], rows: int, rank: int, labels: Mapping[str, int]) -> None:
        self.rows, self.rank, self.labels = rows, rank, dict(labels)
        self._defaults = defaults
        self._held: list[tuple[int, float]] = [(0, 1.0)] * rows
        self.arrays = {name: self._empty(name, default) for name, default in defaults.items()}
        self._bytes = [
            [buffer[place].reshape(-1).view(np.uint8).data for buffer in self.arrays.values()] for place in range(rows)
        ]
        """Place → every slot's part of it. Written through these, an array is copied without the interpreter's lock being let
        go of: numpy does that for each of a hundred small arrays, and to get it back can take longer than the copy."""
        self._spans: WeakKeyDictionary[Layout, list[slice] | None] = WeakKeyDictionary()
        self.bound: dict[int, BoundSlots] = {}
        """Rows of a run → the binding of that many places."""
        self.copies = 0
        """Rows written so far."""
        for place in range(rows):
            self._write(place, Occupant(None))

    def _empty(self, name: str, default: AnyArray) -> AnyArray:
        shape = [self.rows, *default.shape[1:]]
        if name.endswith(".lora_A"):
            shape[2] = self.rank
        elif name.endswith(".lora_B"):
            shape[1] = self.rank
        else:
            shape[-1] = self.labels[name.rpartition(".")[0]]
        return np.zeros(shape, default.dtype)

    def seat(self, occupants: Sequence[Occupant]) -> list[int]:
        """Give every row a place among the first ``len(occupants)``, write what is not there yet, and return the places."""
        places = [-1] * len(occupants)
        lying: dict[tuple[int, float], list[int]] = {}
        for place in range(len(occupants)):
            lying.setdefault(self._held[place], []).append(place)
        for row, occupant in enumerate(occupants):
            if match := lying.get(occupant.key):
                places[row] = match.pop(0)
        free = sorted(set(range(len(occupants))) - set(places))
        for row, occupant in enumerate(occupants):
            if places[row] < 0:
                places[row] = free.pop(0)
                self._write(places[row], occupant)
        return places

    def _write(self, place: int, occupant: Occupant) -> None:
        given = occupant.resident.arrays if occupant.resident is not None else {}
        # most writes are the first
        if isinstance(given, AdapterArrays) and occupant.strength == 1.0 and (spans := self._filling(given.layout)):
            for part, span in zip(self._bytes[place], spans, strict=True):
                part[:] = given.data[span]
        else:
            self._write_parts(place, given, occupant.strength)
        self._held[place] = occupant.key
        self.copies += 1

    def _filling(self, layout: Layout) -> list[slice] | None:
        """Return where the slots' arrays lie in files of this layout, if they fill a place."""
        if layout not in self._spans:
            entries = [layout.entries.get(name) for name in self.arrays]
            fits = [
                entry is not None and entry.shape == (1, *buffer.shape[1:])
                for entry, buffer in zip(entries, self.arrays.values(), strict=True)
            ]
            spans = [slice(entry.start, entry.stop) for entry in entries if entry is not None]
            self._spans[layout] = spans if all(fits) else None
        return self._spans[layout]

    def _write_parts(self, place: int, given: Mapping[str, AnyArray], strength: float) -> None:
        """Write what does not fill the place, or not as it is."""
        for name, buffer in self.arrays.items():
            kind, target, source = name.rpartition(".")[2], buffer[place], given.get(name)
            if kind == "lora_A":
                if source is not None:  # where there is none, a zero B makes it void
                    rank = source.shape[2]
                    target[:, :rank] = source[0]
                    target[:, rank:] = 0
            elif kind == "lora_B":
                rank = source.shape[1] if source is not None else 0
                if source is not None:
                    np.multiply(source[0], strength, out=target[:rank])
                target[rank:] = 0
            else:
                source = self._defaults[name] if source is None else source
                width = source.shape[-1]
                target[..., :width] = source[0]
                target[..., width:] = 0
