"""The buffers of one run whose rows use different adapters: a place for every row in every slot of the graph.

A place keeps what was written to it. Rows of the next batch that use the same adapter go where it still lies, so a
steady mix of adapters costs no copies. Buffers are padded with zeros to the largest rank and number of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
        for name, buffer in self.arrays.items():
            source = given.get(name)
            if name.endswith(".lora_A"):
                if source is not None:  # where there is none, a zero B makes it void
                    rank = source.shape[2]
                    buffer[place, :, :rank] = source[0]
                    buffer[place, :, rank:] = 0
            elif name.endswith(".lora_B"):
                rank = source.shape[1] if source is not None else 0
                if source is not None:
                    np.multiply(source[0], occupant.strength, out=buffer[place, :rank])
                buffer[place, rank:] = 0
            else:
                source = self._defaults[name] if source is None else source
                width = source.shape[-1]
                buffer[place, ..., :width] = source[0]
                buffer[place, ..., width:] = 0
        self._held[place] = occupant.key
        self.copies += 1
