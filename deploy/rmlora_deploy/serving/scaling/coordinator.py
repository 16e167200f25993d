"""The actor that keeps the table of loaded adapters, and knows which replicas have taken over its latest version.

A change is finished only when every replica has it. A replica that cannot be asked is waited for as long as it may still
answer from what it knew: its *lease*, which ends :data:`LEASE` seconds after it last began to ask for changes. So once a
load or unload has returned, no replica answers by the table before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter

__all__ = ["LEASE", "Coordinator", "open_coordinator"]

LEASE = 10.0
"""Seconds for which a replica may trust what it was told."""
_POLLS = 5
"""Questions in a lease, if there are no changes: so long each is held back."""
_FILE = "adapters.json"
_NAMESPACE = "rmlora"


@dataclass(frozen=True)
class _Follower:
    """What is known of a replica."""

    version: int
    heard: float
    report: Any


class Coordinator:
    """The table, in memory and in the shared directory; runs as an actor (one event loop, no threads).

    Args:
        directory: shared directory.
        lease: seconds, see :data:`LEASE`.
    """

    def __init__(self, directory: str, lease: float = LEASE) -> None:
        self._file, self._lease, self._poll = Path(directory) / _FILE, lease, lease / _POLLS
        self._watchers: dict[str, _Follower] = {}
        self._changed = asyncio.Condition()
        self._settled_from = 0.0
        if self._file.is_file():
            self._table = AdapterState.read(self._file)
            self._settled_from = time.monotonic() + lease  # replicas may trust what another keeper told them
        else:
            self._table = AdapterState()
            self._table.write(self._file)

    async def follow(self, replica: str, version: int, report: Any) -> AdapterState | None:
        """Return the table once it is newer than ``version``, which ``replica`` has; None if it is not for a while."""
        self._watchers[replica] = _Follower(version, time.monotonic(), report)
        async with self._changed:
            self._changed.notify_all()
            if self._table.version <= version:
                try:
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._table.version > version), self._poll)
                except TimeoutError:
                    return None
            return self._table

    async def leave(self, replica: str) -> None:
        """Wait for ``replica`` no longer: it answers nothing more."""
        self._watchers.pop(replica, None)

    async def load(self, entry: LoadedAdapter) -> str | None:
        """Add an adapter; returns when every replica has it, or why it cannot be."""
        return await self._change(lambda table: table.load(entry))

    async def unload(self, name: str, generation: str) -> str | None:
        """Take a loaded adapter away, of that generation only; returns when no replica has it."""
        return await self._change(lambda table: table.unload(name, generation))

    async def remove(self, name: str, digest: str) -> str | None:
        """Take an adapter of a bundle away; returns when no replica has it."""
        return await self._change(lambda table: table.remove(name, digest))

    async def reports(self) -> dict[str, Any]:
        """Return what every replica last told of itself."""
        self._forget()
        return {replica: watcher.report for replica, watcher in self._watchers.items()}

    async def _change(self, change: Callable[[AdapterState], AdapterState]) -> str | None:
        try:
            table = change(self._table)
        except ConfigError as error:
            return str(error)
        if table.version != self._table.version:
            table.write(self._file)
            self._table = table
        async with self._changed:
            self._changed.notify_all()
            while not self._settled(table.version):
                try:
                    await asyncio.wait_for(self._changed.wait(), 0.2)
                except TimeoutError:
                    continue
        return None

    def _settled(self, version: int) -> bool:
        self._forget()
        everybody = all(watcher.version >= version for watcher in self._watchers.values())
        return everybody and time.monotonic() >= self._settled_from

    def _forget(self) -> None:
        """Drop replicas that may answer nothing any more."""
        end = time.monotonic() - self._lease
        for replica in [name for name, watcher in self._watchers.items() if watcher.heard < end]:
            del self._watchers[replica]


def open_coordinator(directory: str) -> Any:
    """Return a handle on the keeper of ``directory``, which is started if there is none."""
    import ray

    name = "keeper-" + hashlib.sha256(str(Path(directory).resolve()).encode()).hexdigest()[:16]
    actor = ray.remote(Coordinator).options(
        name=name, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
        max_restarts=-1, max_concurrency=10_000,
    )  # fmt: skip
    return actor.remote(directory)
