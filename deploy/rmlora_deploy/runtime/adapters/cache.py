"""The adapter cache: any number of adapters registered, the most recently used of them in memory.

A cached adapter has an index in a rank bucket. The index is not written again while a run uses it, even if the adapter was
evicted or unloaded in the meantime, so a run ends with the same weights it started with.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy.typing as npt

from rmlora.errors import ConfigError, RMLoRAError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName, AdapterRef
from rmlora_deploy.runtime.adapters.failures import Failures, UnreadableAdapterError
from rmlora_deploy.runtime.adapters.loaders import AdapterLoaders, Loader, check_capacity
from rmlora_deploy.runtime.adapters.prefetch import Prefetcher
from rmlora_deploy.runtime.adapters.rank_buckets import RankBucket, RankBuckets

__all__ = ["AdapterCache", "CachedAdapter"]

AnyArray = npt.NDArray[Any]
_serials = itertools.count(1)


@dataclass(eq=False)
class CachedAdapter:
    """An adapter in memory at one strength, or on its way there."""

    ref: AdapterRef
    loader: Loader
    bucket: RankBucket | None = None
    """Where its arrays are, or are being written; None until they were read."""
    index: int = 0
    """Its index in the bucket."""
    labels: dict[str, int] = field(default_factory=dict)
    """Module path of each head it has → number of outputs."""
    serial: int = field(default_factory=lambda: next(_serials))
    """Distinguishes it from every other adapter ever cached, including earlier ones of the same name."""
    users: int = 0
    """Batches that use it now."""
    dropped: bool = False
    """It left the cache; its index is freed once no batch uses it."""
    prefetched: bool = False
    """It was read ahead of time and no batch has used it yet."""
    read_started: bool = False
    """A thread reads it or has read it."""
    ready: bool = False
    """Its arrays are in the bucket."""
    read_done: threading.Event = field(default_factory=threading.Event)
    """Set once it is ready, or reading it failed."""


class AdapterCache:
    """Adapters by name, the most recently used of them in memory. Safe to use from any number of threads.

    Args:
        capacity: adapters kept in memory. One that is used at two strengths counts twice.
        buckets: memory for them; needs room for ``capacity`` adapters and those that running batches use beyond it.

    Raises:
        ConfigError: the capacity is less than one.
    """

    def __init__(self, capacity: int, buckets: RankBuckets) -> None:
        check_capacity(capacity)
        self._capacity, self._buckets = capacity, buckets
        self._lock = threading.Lock()
        self._index_freed = threading.Condition(self._lock)
        self._loaders = AdapterLoaders()
        self._cached: OrderedDict[AdapterRef, CachedAdapter] = OrderedDict()
        """The most recently used is last."""
        self._pinned: set[AdapterRef] = set()
        self._prefetched = 0
        """Cached adapters that were prefetched and not used yet."""
        self._reader = Prefetcher()
        self.failures = Failures()
        """Registered adapters that could not be read when they were last needed."""
        self.hits = self.misses = self.evictions = 0

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Make an adapter known as ``name``; ``loader`` is called whenever it is needed and not in memory.

        Raises:
            ConfigError: the name is taken or empty.
        """
        with self._lock:
            self._loaders.add(name, loader)

    def unregister(self, name: AdapterName) -> CachedAdapter | None:
        """Forget ``name`` and return it if it was cached at full strength. Runs that use it are not disturbed.

        Raises:
            InputError: it is not registered.
        """
        with self._lock:
            self._loaders.remove(name)
            self.failures.forget(name)
            self._pinned.discard(AdapterRef(name))
            at_full_strength = self._cached.get(AdapterRef(name))
            for ref in [ref for ref in self._cached if ref.key == name]:
                self._drop(ref)
            return at_full_strength

    def pin(self, name: AdapterName, *, pinned: bool = True) -> CachedAdapter | None:
        """Protect ``name`` from eviction, or stop protecting it; return it if it is cached.

        Raises:
            InputError: it is not registered.
            ConfigError: no capacity would be left for other adapters.
        """
        with self._lock:
            self._loaders.loader_of(name)
            ref = AdapterRef(name)
            if pinned and len(self._pinned | {ref}) >= self._capacity:
                raise ConfigError(
                    f"All {self._capacity} adapters that the cache holds would be pinned: raise --max-active-adapters."
                )
            (self._pinned.add if pinned else self._pinned.discard)(ref)
            return self._cached.get(ref)

    def prefetch(self, ref: AdapterRef) -> None:
        """Start reading an adapter that a batch will use soon, unless it is cached or unknown; return at once.

        The least recently used adapter makes room for it. Prefetched adapters fill at most half of the capacity: with more,
        some would be evicted before they are used.
        """
        with self._lock:
            loader = self._loaders.get(ref.key)
            if loader is None or ref in self._cached or self._prefetched >= self._capacity // 2:
                return
            with suppress(RuntimeError):  # no thread could be started: the batch will read it
                adapter = CachedAdapter(ref, loader, prefetched=True)
                self._reader.submit(partial(self._read_ahead, adapter))
                self._insert(adapter)
                self._prefetched += 1

    def read_again(self, name: AdapterName) -> None:
        """Find out in the background whether an adapter that could not be read can be read now."""
        with self._lock, suppress(RuntimeError):
            loader = self._loaders.get(name)
            if loader is not None:
                self._reader.submit(partial(self._try, name, loader))

    def _try(self, name: AdapterName, loader: Loader) -> None:
        try:
            loader()
        except Exception as error:  # noqa: BLE001 - whatever it is, the adapter cannot be used
            self._set_failure(name, loader, _reason(error))
        else:
            self._set_failure(name, loader, None)

    def _set_failure(self, name: AdapterName, loader: Loader, reason: str | None) -> None:
        """Record that an adapter could not be read, or that it could, unless its name has another meaning by now."""
        with self._lock:
            if self._loaders.get(name) is not loader:
                return
            changed = self.failures.set(name, reason)
        if changed:
            self.failures.on_change(name, reason)

    def _read_ahead(self, adapter: CachedAdapter) -> None:
        with self._lock:
            if adapter.read_started or adapter.dropped:
                return
            adapter.read_started = True
            adapter.users += 1
        with suppress(Exception):  # the batch that needs it reads it again, and its caller gets the error
            self._read(adapter)
            with self._lock:
                self._release(adapter)

    @contextmanager
    def held(self, refs: Iterable[AdapterRef]) -> Iterator[dict[AdapterRef, CachedAdapter]]:
        """Hold adapters in memory until the block ends; those that are not cached are read first.

        Args:
            refs: the adapter of every row; each row counts as a hit or a miss.

        Raises:
            InputError: an adapter is not registered.
            UnreadableAdapterError: an adapter cannot be read.
            ConfigError: there is no memory for it.
        """
        held: dict[AdapterRef, CachedAdapter] = {}
        repeats = 0
        try:
            for ref in refs:
                if ref in held:
                    repeats += 1
                else:
                    held[ref] = self._acquire(ref)
            yield held
        finally:
            with self._lock:
                self.hits += repeats
                for adapter in held.values():
                    self._release(adapter)

    def _acquire(self, ref: AdapterRef) -> CachedAdapter:
        """Return an adapter that stays in memory until :meth:`_release`; errors as :meth:`held`."""
        while True:
            with self._lock:
                adapter = self._cached.get(ref)
                if adapter is None:
                    adapter = CachedAdapter(ref, self._loaders.loader_of(ref.key))
                    self._insert(adapter)
                else:
                    self.hits += not adapter.prefetched  # prefetching it counted as a miss
                    self._clear_prefetched(adapter)
                    self._cached.move_to_end(ref)
                adapter.users += 1
                read_here, adapter.read_started = not adapter.read_started, True
            if read_here:
                self._read(adapter)  # without the lock, so that other threads can go on
                return adapter
            try:
                adapter.read_done.wait()
                if adapter.ready:
                    return adapter
            except BaseException:
                with self._lock:
                    self._release(adapter)
                raise
            with self._lock:  # another thread failed to read it: try it here, to raise the reason
                self._release(adapter)

    def _insert(self, adapter: CachedAdapter) -> None:
        """Add an adapter that is about to be read, and evict the least recently used ones beyond the capacity."""
        self.misses += 1
        self._cached[adapter.ref] = adapter
        excess = len(self._cached) - self._capacity
        if excess > 0:
            evictable = (ref for ref in self._cached if ref not in self._pinned)
            for ref in list(itertools.islice(evictable, excess)):
                self._drop(ref)
                self.evictions += 1

    def _read(self, adapter: CachedAdapter) -> None:
        """Read an adapter into a bucket; if that fails, remove every trace of it."""
        try:
            arrays = self._load(adapter)
            with self._lock:
                bucket = self._buckets.bucket_for(arrays)
                while not bucket.free:
                    self._index_freed.wait()
                adapter.bucket, adapter.index = bucket, bucket.free.pop()
            bucket.write(adapter.index, arrays, adapter.ref.strength)
            adapter.labels = {
                head: arrays[f"{head}.bias"].shape[-1] for head in self._buckets.heads if f"{head}.bias" in arrays
            }
            adapter.ready = True
        except BaseException:
            with self._lock:
                if self._cached.get(adapter.ref) is adapter:
                    self._drop(adapter.ref)
                self._release(adapter)
            raise
        finally:
            adapter.read_done.set()

    def _load(self, adapter: CachedAdapter) -> Mapping[str, AnyArray]:
        """Return an adapter's arrays, and record whether they could be read."""
        name, loader = adapter.ref.key, adapter.loader
        try:
            arrays = loader()
        except Exception as error:
            self._set_failure(name, loader, _reason(error))
            if isinstance(error, RMLoRAError):
                raise UnreadableAdapterError(name, str(error)) from error
            raise
        if name in self.failures.reasons:
            self._set_failure(name, loader, None)
        return arrays

    def _drop(self, ref: AdapterRef) -> None:
        adapter = self._cached.pop(ref)
        adapter.dropped = True
        self._clear_prefetched(adapter)
        self._free_index(adapter)

    def _clear_prefetched(self, adapter: CachedAdapter) -> None:
        self._prefetched -= adapter.prefetched
        adapter.prefetched = False

    def _release(self, adapter: CachedAdapter) -> None:
        adapter.users -= 1
        self._free_index(adapter)

    def _free_index(self, adapter: CachedAdapter) -> None:
        """Free the index of an adapter that was dropped and that no batch uses."""
        if adapter.dropped and not adapter.users and adapter.bucket is not None:
            adapter.bucket.free.append(adapter.index)
            self._index_freed.notify_all()  # waiting threads may need different buckets

    @property
    def names(self) -> list[AdapterName]:
        """Every registered name, sorted."""
        with self._lock:
            return self._loaders.names

    @property
    def cached(self) -> list[AdapterName]:
        """The names in memory, the most recently used last; one cached at two strengths appears twice."""
        with self._lock:
            return [ref.key for ref in self._cached]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
