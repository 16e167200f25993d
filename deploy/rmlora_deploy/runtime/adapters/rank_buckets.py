"""Where adapters lie in memory: every slot of the graph has one array, with a place for each of many adapters.

A run is handed these arrays as they are, and which places its rows use. A place is written while no run uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError
from rmlora_converters.graph.files.onnx_adapter import AdapterArrays, Layout
from rmlora_deploy.runtime.binding import BoundInputs

__all__ = ["BASE", "BucketShape", "RankBucket", "RankBuckets"]

AnyArray = npt.NDArray[Any]

BASE = 0
"""The place whose rows answer as the base."""
_RANK, _LABELS = 8, 16
"""The smallest places; larger ones are twice as large each, so that adapters of about one size share a shelf."""


class BucketShape(NamedTuple):
    """What a place holds."""

    rank: int
    labels: tuple[int, ...]
    """Outputs of every head; 0 where the base's own answers."""


class RankBucket:
    """Places of one size.

    Args:
        defaults: slot → what the base has there, ``rows`` = 1.
        size: of a place.
        places: how many, besides the base's. Memory is taken when a place is first written.
    """

    def __init__(self, defaults: Mapping[str, AnyArray], size: BucketShape, places: int) -> None:
        self._defaults = defaults
        labels = dict(zip(_heads(defaults), size.labels, strict=True))
        self.arrays = {
            name: np.zeros(_shape(name, default, places + 1, size.rank, labels), default.dtype)
            for name, default in defaults.items()
        }
        self.free = list(range(places, BASE, -1))
        """Places that nothing uses, the one to be taken next at the end."""
        self.bound: list[BoundInputs] = []
        """Bindings of the arrays that no run uses at the moment."""
        self._bytes = [array.reshape(-1).view(np.uint8).data for array in self.arrays.values()]
        """Every slot's array as bytes. Written through these, an array is copied without the interpreter's lock being let go
        of: numpy does that for each of a hundred small arrays, and to get it back can take longer than the copy."""
        self._plans: WeakKeyDictionary[Layout, _Plan] = WeakKeyDictionary()
        self.write(BASE, {})

    def write(self, place: int, given: Mapping[str, AnyArray], strength: float = 1.0) -> None:
        """Write an adapter to a place that no run uses.

        Args:
            place: where.
            given: slot → array with ``rows`` = 1; what is not in it becomes the base's.
            strength: factor of the update.
        """
        if not isinstance(given, AdapterArrays) or strength != 1.0:
            self._write_parts(place, self.arrays, given, strength)
            return
        if given.layout not in self._plans:
            self._plans[given.layout] = _Plan.of(given.layout, self.arrays)
        plan = self._plans[given.layout]
        for slot, span in plan.whole:
            size = span.stop - span.start
            self._bytes[slot][place * size : (place + 1) * size] = given.data[span]
        self._write_parts(place, plan.partial, given, strength)

    def _write_parts(self, place: int, names: Iterable[str], given: Mapping[str, AnyArray], strength: float) -> None:
        """Write the slots ``names``, with zeros where an array does not fill its part of the place."""
        for name in names:
            kind, target, source = name.rpartition(".")[2], self.arrays[name][place], given.get(name)
            if kind == "lora_A":
                rank = source.shape[2] if source is not None else 0
                if source is not None:
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


@dataclass(frozen=True)
class _Plan:
    """How files of one layout are written."""

    whole: Sequence[tuple[int, slice]]
    """Arrays that fill their part of a place: number of the slot, and where in the file it lies."""
    partial: Sequence[str]
    """Slots whose part is not filled, or that have no array in the file."""

    @classmethod
    def of(cls, layout: Layout, arrays: Mapping[str, AnyArray]) -> _Plan:
        """Make one for the arrays of a shelf."""
        whole, partial = [], []
        for number, (name, array) in enumerate(arrays.items()):
            entry = layout.entries.get(name)
            if entry is not None and entry.shape == (1, *array.shape[1:]):
                whole.append((number, slice(entry.start, entry.stop)))
            else:
                partial.append(name)
        return cls(whole, partial)


class RankBuckets:
    """A shelf for every size that was needed.

    Args:
        defaults: slot → what the base has there, ``rows`` = 1.
        places: of each shelf.
    """

    def __init__(self, defaults: Mapping[str, AnyArray], places: int) -> None:
        self._defaults, self._places = defaults, places
        self.heads = _heads(defaults)
        """Module paths of the heads, in the order of execution."""
        self._shelves: dict[BucketShape, RankBucket] = {}
        self._known: WeakKeyDictionary[Layout, RankBucket] = WeakKeyDictionary()

    def fitting(self, arrays: Mapping[str, AnyArray]) -> RankBucket:
        """Return the shelf for an adapter, with places as large as its largest rank and its heads need; one thread at a time.

        Raises:
            ConfigError: there is no memory for them.
        """
        layout = arrays.layout if isinstance(arrays, AdapterArrays) else None
        found = self._known.get(layout) if layout is not None else None
        if found is None:
            size = self._size(arrays)
            if size not in self._shelves:
                try:
                    self._shelves[size] = RankBucket(self._defaults, size, self._places)
                except MemoryError:
                    raise ConfigError(
                        f"There is no memory for {self._places} adapters of rank {size.rank}: keep fewer (--max-active-adapters)."
                    ) from None
            found = self._shelves[size]
            if layout is not None:
                self._known[layout] = found
        return found

    def _size(self, arrays: Mapping[str, AnyArray]) -> BucketShape:
        rank = max((array.shape[2] for name, array in arrays.items() if name.endswith(".lora_A")), default=0)
        widths = (
            max(item[f"{head}.bias"].shape[-1] for item in (self._defaults, arrays) if f"{head}.bias" in item)
            for head in self.heads
        )
        return BucketShape(_doubled(_RANK, rank), tuple(_doubled(_LABELS, width) if width else 0 for width in widths))


def _heads(defaults: Mapping[str, AnyArray]) -> list[str]:
    return [name.removesuffix(".bias") for name in defaults if name.endswith(".bias")]


def _doubled(start: int, least: int) -> int:
    """Return ``start``, doubled until it is at least ``least``."""
    while start < least:
        start *= 2
    return start


def _shape(name: str, default: AnyArray, places: int, rank: int, labels: Mapping[str, int]) -> list[int]:
    shape = [places, *default.shape[1:]]
    if name.endswith(".lora_A"):
        shape[2] = rank
    elif name.endswith(".lora_B"):
        shape[1] = rank
    else:
        shape[-1] = labels[name.rpartition(".")[0]]
    return shape
