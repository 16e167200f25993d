"""The actor that holds the adapter state and knows which replicas have taken over its latest version.

A change is complete only when every replica has it. If a replica does not answer, the coordinator waits until its *lease*
has ended, :data:`LEASE` seconds after the replica last began to ask for changes; from then on the replica refuses requests.
So once a load or unload has returned, no replica answers by an older state.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter

__all__ = ["LEASE", "Coordinator", "open_coordinator"]

LEASE = 10.0
"""Seconds for which a replica may rely on the state it was given."""
_POLLS = 5
"""Polls per lease while nothing changes: each is held back for that part of it."""
_FILE = "adapters.json"
_NAMESPACE = "rmlora"


@dataclass(frozen=True)
class _KnownReplica:
    """What a replica said when it last asked for changes."""

    version: int
    """The state it has."""
    asked: float
    """When (``time.monotonic()``)."""
    report: Any
    """Its figures."""


class Coordinator:
    """Holds the adapter state, in memory and in the shared directory; runs as an actor (one event loop, no threads).

    Args:
        directory: shared directory.
        lease: seconds, see :data:`LEASE`.
    """

    def __init__(self, directory: str, lease: float = LEASE) -> None:
        self._file, self._lease, self._poll = Path(directory) / _FILE, lease, lease / _POLLS
        self._replicas: dict[str, _KnownReplica] = {}
        self._changed = asyncio.Condition()
        self._settled_from = 0.0
        """Before this time, replicas that this coordinator does not know of may exist."""
        if self._file.is_file():
            self._state = AdapterState.read(self._file)
            self._settled_from = time.monotonic() + lease  # leases given by an earlier coordinator
        else:
            self._state = AdapterState()
            self._state.write(self._file)

    async def join(self, contents: Mapping[str, str]) -> str | None:
        """Return why a new replica must not start; None if it may.

        Args:
            contents: directory of each of its bundles → hash of the content.
        """
        self._drop_expired()
        for replica in self._replicas.values():
            known = _contents(replica.report)
            for path, digest in contents.items():
                if known.get(path, digest) != digest:
                    return (
                        f"{path} has changed since other replicas opened it, and they would answer differently: put the new "
                        "bundle into a new directory and deploy that, or put the former files back."
                    )
        return None

    async def watch(self, replica: str, version: int, report: Any) -> AdapterState | None:
        """Wait for a change, and return the new state or None if there was none for a while.

        Args:
            replica: who asks; this renews its lease.
            version: the state it has.
            report: its figures, for :meth:`reports`.
        """
        self._replicas[replica] = _KnownReplica(version, time.monotonic(), report)
        async with self._changed:
            self._changed.notify_all()
            if self._state.version <= version:
                try:
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._state.version > version), self._poll)
                except TimeoutError:
                    return None
            return self._state

    async def leave(self, replica: str) -> None:
        """Stop waiting for ``replica``, which answers no more requests."""
        self._replicas.pop(replica, None)

    async def load(self, entry: LoadedAdapter) -> str | None:
        """Add an adapter. Returns None once every replica has it, or the reason it cannot be added."""
        return await self._change(lambda state: state.load(entry))

    async def unload(self, key: AdapterKey) -> str | None:
        """Remove a loaded adapter of exactly this generation. Returns None once no replica has it."""
        return await self._change(lambda state: state.unload(key))

    async def remove(self, name: str, digest: str) -> str | None:
        """Remove an adapter of a bundle. Returns None once no replica has it."""
        return await self._change(lambda state: state.remove(name, digest))

    async def reports(self) -> dict[str, Any]:
        """Return the latest figures of every replica."""
        self._drop_expired()
        return {name: replica.report for name, replica in self._replicas.items()}

    async def _change(self, change: Callable[[AdapterState], AdapterState]) -> str | None:
        try:
            state = change(self._state)
        except ConfigError as error:
            return str(error)
        if state.version != self._state.version:
            state.write(self._file)
            self._state = state
        async with self._changed:
            self._changed.notify_all()
            while not self._settled(state.version):
                try:
                    await asyncio.wait_for(self._changed.wait(), 0.2)
                except TimeoutError:
                    continue
        return None

    def _settled(self, version: int) -> bool:
        """Return True if no replica can answer by a state older than ``version``."""
        self._drop_expired()
        up_to_date = all(replica.version >= version for replica in self._replicas.values())
        return up_to_date and time.monotonic() >= self._settled_from

    def _drop_expired(self) -> None:
        """Drop the replicas whose lease has ended."""
        end = time.monotonic() - self._lease
        for name in [name for name, replica in self._replicas.items() if replica.asked < end]:
            del self._replicas[name]


def _contents(report: Any) -> Mapping[str, str]:
    """Return the contents in a replica's figures; replicas of an older release send none."""
    return report.get("contents", {}) if isinstance(report, dict) else {}


def open_coordinator(directory: str) -> Any:
    """Return a handle on the coordinator of ``directory``, which is started if there is none."""
    import ray

    name = "coordinator-" + hashlib.sha256(str(Path(directory).resolve()).encode()).hexdigest()[:16]
    actor = ray.remote(Coordinator).options(
        name=name, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
        max_restarts=-1, max_concurrency=10_000,
    )  # fmt: skip
    return actor.remote(directory)
