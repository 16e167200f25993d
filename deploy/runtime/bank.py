"""Which adapters are known, and which of them are in memory: any number registered, the last N used resident.

An adapter in memory is never changed. Evicting or unloading it only lets go of it, so a run that still uses it ends
with the right numbers.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt

from deploy.runtime.binding import BoundSlots
from rmlora.errors import ConfigError, InputError, some_of

__all__ = ["Bank", "Resident"]

AnyArray = npt.NDArray[Any]
Loader = Callable[[], Mapping[str, AnyArray]]

_numbers = itertools.count(1)


@dataclass(eq=False)
class Resident:
    """An adapter in memory."""

    name: str
    arrays: Mapping[str, AnyArray]
    """Slot → array with ``rows`` = 1."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Tells it from another one that had the same name before."""
    bound: list[BoundSlots] = field(default_factory=list)
    """Bindings of its arrays that no run uses at the moment."""

    @cached_property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max((array.shape[2] for name, array in self.arrays.items() if name.endswith(".lora_A")), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.arrays.values())


class Bank:
    """Adapters by name; safe to use from any number of threads."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ConfigError(f"A bank needs at least one slot, not {slots}: change --bank.")
        self._slots = slots
        self._lock = threading.Lock()
        self._loaders: dict[str, Loader] = {}
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # the one used last comes last
        self._pinned: set[str] = set()
        self.hits = self.misses = self.evictions = 0

    def register(self, name: str, loader: Loader) -> None:
        """Make ``name`` known; ``loader`` reads its arrays when they are needed.

        Raises:
            ConfigError: the name is taken or empty.
        """
        if not name:
            raise ConfigError("An adapter needs a name.")
        with self._lock:
            if name in self._loaders:
                raise ConfigError(f"There is an adapter '{name}' already: unload it first, or choose another name.")
            self._loaders[name] = loader

    def unregister(self, name: str) -> Resident | None:
        """Forget ``name`` and return it if it was in memory; runs that use it go on.

        Raises:
            InputError: it is not known.
        """
        with self._lock:
            if self._loaders.pop(name, None) is None:
                raise InputError(self._unknown(name))
            self._pinned.discard(name)
            return self._resident.pop(name, None)

    def pin(self, name: str, *, pinned: bool = True) -> Resident | None:
        """Keep ``name`` in memory whatever else is used, or no longer; return it if it is there.

        Raises:
            InputError: it is not known.
            ConfigError: every slot would be pinned.
        """
        with self._lock:
            if name not in self._loaders:
                raise InputError(self._unknown(name))
            if pinned and len(self._pinned | {name}) >= self._slots:
                raise ConfigError(f"All {self._slots} slots of the bank would be pinned: make it larger (--bank).")
            (self._pinned.add if pinned else self._pinned.discard)(name)
            return self._resident.get(name)

    def get(self, name: str) -> Resident:
        """Return the adapter, read if it is not in memory.

        Raises:
            InputError: it is not known.
        """
        with self._lock:
            found = self._resident.get(name)
            if found is not None:
                self.hits += 1
                self._resident.move_to_end(name)
                return found
            loader = self._loaders.get(name)
            if loader is None:
                raise InputError(self._unknown(name))
            self.misses += 1
        loaded = Resident(name, loader())  # without the lock: others go on while a file is read
        with self._lock:
            if self._loaders.get(name) is not loader:
                return loaded  # unloaded or replaced meanwhile: this run began before that
            kept = self._resident.setdefault(name, loaded)
            self._resident.move_to_end(name)
            self._evict()
            return kept

    def _evict(self) -> None:
        more = len(self._resident) - self._slots
        if more > 0:
            evictable = (name for name in self._resident if name not in self._pinned)
            for name in list(itertools.islice(evictable, more)):
                del self._resident[name]
                self.evictions += 1

    def _unknown(self, name: str) -> str:
        known = sorted(self._loaders)
        return f"There is no adapter '{name}': " + (f"known are {some_of(known)}." if known else "none is loaded.")

    @property
    def names(self) -> list[str]:
        """Every name known, sorted."""
        with self._lock:
            return sorted(self._loaders)

    @property
    def resident(self) -> list[str]:
        """The names in memory, the one used last at the end."""
        with self._lock:
            return list(self._resident)
