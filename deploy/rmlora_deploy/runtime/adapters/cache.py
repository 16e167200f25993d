"""Which adapters are known, and which of them are in memory: any number registered, the last N used resident.

An adapter in memory has a place that is not written again while a run uses it, even where the adapter was evicted or
unloaded meanwhile: so a run ends with the numbers that it began with.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, some_of
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName, AdapterRef
from rmlora_deploy.runtime.adapters.prefetch import Prefetcher
from rmlora_deploy.runtime.adapters.rank_buckets import RankBucket, RankBuckets

__all__ = ["AdapterCache", "CachedAdapter"]

AnyArray = npt.NDArray[Any]
Loader = Callable[[], Mapping[str, AnyArray]]

_numbers = itertools.count(1)


@dataclass(eq=False)
class CachedAdapter:
    """An adapter in memory, at one strength."""

    chosen: AdapterRef
    loader: Loader
    """Reads its arrays."""
    shelf: RankBucket | None = None
    place: int = 0
    """Where they lie, or are being written."""
    labels: dict[str, int] = field(default_factory=dict)
    """Head that it brings → outputs."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Tells it from another one that had the same name before."""
    users: int = 0
    """Batches that use it at the moment."""
    leaving: bool = False
    """Its place is free once nobody uses it."""
    ahead: bool = False
    """It was read before a batch needed it, and none has used it yet."""
    started: bool = False
    """Somebody reads it, or has read it."""
    usable: bool = False
    """Its arrays are in their place."""
    tried: threading.Event = field(default_factory=threading.Event)
    """Set when they are there, or could not be read."""


class AdapterCache:
    """Adapters by name; safe to use from any number of threads.

    Args:
        slots: adapters that stay in memory.
        shelves: where they lie; they need places for those and for what runs use beyond them.
    """

    def __init__(self, lora_inputs: int, shelves: RankBuckets) -> None:
        if lora_inputs < 1:
            raise ConfigError(f"A bank needs at least one slot, not {lora_inputs}: change --max-active-adapters.")
        self._slots, self._shelves = lora_inputs, shelves
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._loaders: dict[AdapterName, Loader] = {}
        self._resident: OrderedDict[AdapterRef, CachedAdapter] = OrderedDict()
        """The one used last comes last."""
        self._pinned: set[AdapterRef] = set()
        self._ahead = 0
        """How many are in memory ahead of their use."""
        self._reader = Prefetcher()
        self.hits = self.misses = self.evictions = 0

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Make ``name`` known; ``loader`` reads its arrays when they are needed.

        Raises:
            ConfigError: the name is taken or empty.
        """
        if not str(name):
            raise ConfigError("An adapter needs a name.")
        with self._lock:
            if name in self._loaders:
                raise ConfigError(f"There is an adapter '{name}' already: unload it first, or choose another name.")
            self._loaders[name] = loader

    def unregister(self, name: AdapterName) -> CachedAdapter | None:
        """Forget ``name`` and return it if it was in memory at full strength; runs that use it go on.

        Raises:
            InputError: it is not known.
        """
        with self._lock:
            if self._loaders.pop(name, None) is None:
                raise InputError(self._unknown(name))
            self._pinned.discard(AdapterRef(name))
            found = self._resident.get(AdapterRef(name))
            for chosen in [chosen for chosen in self._resident if chosen.key == name]:
                self._drop(chosen)
            return found

    def pin(self, name: AdapterName, *, pinned: bool = True) -> CachedAdapter | None:
        """Keep ``name`` in memory whatever else is used, or no longer; return it if it is there.

        Raises:
            InputError: it is not known.
            ConfigError: every slot would be pinned.
        """
        with self._lock:
            if name not in self._loaders:
                raise InputError(self._unknown(name))
            chosen = AdapterRef(name)
            if pinned and len(self._pinned | {chosen}) >= self._slots:
                raise ConfigError(
                    f"All {self._slots} slots of the bank would be pinned: make it larger (--max-active-adapters)."
                )
            (self._pinned.add if pinned else self._pinned.discard)(chosen)
            return self._resident.get(chosen)

    def prefetch(self, chosen: AdapterRef) -> None:
        """Start to read an adapter that a batch will soon use, unless it is in memory; return at once.

        It takes the place of one that was used longer ago. At most half of the slots are filled ahead: where more were, some
        would be gone before they were used.
        """
        with self._lock:
            loader = self._loaders.get(chosen.key)
            if loader is None or chosen in self._resident or self._ahead >= self._slots // 2:
                return
            with suppress(RuntimeError):  # no thread to be had: then the batch reads it
                made = CachedAdapter(chosen, loader, ahead=True)
                self._reader.submit(partial(self._read_ahead, made))
                self._add(made)
                self._ahead += 1

    def _read_ahead(self, resident: CachedAdapter) -> None:
        with self._lock:
            if resident.started or resident.leaving:
                return
            resident.started = True
            resident.users += 1
        with suppress(Exception):  # the batch that needs it tries again, and its caller is told
            self._read(resident)
            with self._lock:
                self._leave(resident)

    @contextmanager
    def held(self, wanted: Iterable[AdapterRef]) -> Iterator[dict[AdapterRef, CachedAdapter]]:
        """Have all that is ``wanted`` in memory, read if it is not there, until the block ends.

        Args:
            wanted: the adapter of every row; each counts as found or missed.

        Raises:
            InputError: one is not known, or cannot be read.
        """
        held: dict[AdapterRef, CachedAdapter] = {}
        again = 0
        try:
            for chosen in wanted:
                if chosen in held:
                    again += 1
                else:
                    held[chosen] = self._take(chosen)
            yield held
        finally:
            with self._lock:
                self.hits += again
                for resident in held.values():
                    self._leave(resident)

    def _take(self, chosen: AdapterRef) -> CachedAdapter:
        """Return an adapter, for as long as :meth:`_leave` is not called; errors as :meth:`held`."""
        while True:
            with self._lock:
                found = self._resident.get(chosen)
                if found is None:
                    loader = self._loaders.get(chosen.key)
                    if loader is None:
                        raise InputError(self._unknown(chosen.key))
                    found = CachedAdapter(chosen, loader)
                    self._add(found)
                else:
                    self.hits += not found.ahead  # reading it ahead counted as a miss
                    self._no_longer_ahead(found)
                    self._resident.move_to_end(chosen)
                found.users += 1
                ours, found.started = not found.started, True
            if ours:
                self._read(found)  # without the lock: others go on meanwhile
                return found
            try:
                found.tried.wait()
                if found.usable:
                    return found
            except BaseException:
                with self._lock:
                    self._leave(found)
                raise
            with self._lock:  # who was to read it could not: learn the reason by trying it ourselves
                self._leave(found)

    def _add(self, resident: CachedAdapter) -> None:
        """Make room for an adapter that is about to be read."""
        self.misses += 1
        self._resident[resident.chosen] = resident
        self._evict()

    def _read(self, resident: CachedAdapter) -> None:
        """Bring an adapter to a place; where that fails, nothing is left of it."""
        try:
            arrays = resident.loader()
            with self._lock:
                shelf = self._shelves.fitting(arrays)
                while not shelf.free:
                    self._freed.wait()
                resident.shelf, resident.place = shelf, shelf.free.pop()
            shelf.write(resident.place, arrays, resident.chosen.strength)
            resident.labels = {
                head: arrays[f"{head}.bias"].shape[-1] for head in self._shelves.heads if f"{head}.bias" in arrays
            }
            resident.usable = True
        except BaseException:
            with self._lock:
                if self._resident.get(resident.chosen) is resident:
                    self._drop(resident.chosen)
                self._leave(resident)
            raise
        finally:
            resident.tried.set()

    def _evict(self) -> None:
        """Let go of the adapters used longest ago."""
        more = len(self._resident) - self._slots
        if more > 0:
            evictable = (chosen for chosen in self._resident if chosen not in self._pinned)
            for chosen in list(itertools.islice(evictable, more)):
                self._drop(chosen)
                self.evictions += 1

    def _drop(self, chosen: AdapterRef) -> None:
        resident = self._resident.pop(chosen)
        resident.leaving = True
        self._no_longer_ahead(resident)
        self._free(resident)

    def _no_longer_ahead(self, resident: CachedAdapter) -> None:
        self._ahead -= resident.ahead
        resident.ahead = False

    def _leave(self, resident: CachedAdapter) -> None:
        resident.users -= 1
        self._free(resident)

    def _free(self, resident: CachedAdapter) -> None:
        """Free the place of an adapter that has left and that nobody uses."""
        if resident.leaving and not resident.users and resident.shelf is not None:
            resident.shelf.free.append(resident.place)
            self._freed.notify_all()  # they may wait for different shelves

    def _unknown(self, name: AdapterName) -> str:
        known = sorted({str(name) for name in self._loaders})
        return f"There is no adapter '{name}': " + (f"known are {some_of(known)}." if known else "none is loaded.")

    @property
    def names(self) -> list[AdapterName]:
        """What is registered, sorted."""
        with self._lock:
            return sorted(self._loaders, key=str)

    @property
    def cached(self) -> list[AdapterName]:
        """What is in memory, the most recently used last; an adapter cached at two strengths is there twice."""
        with self._lock:
            return [chosen.key for chosen in self._resident]
