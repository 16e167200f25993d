"""A replica's connection to the coordinator: a thread that takes over every change, and calls that make changes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.errors import UnreachableError
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter
from rmlora_deploy.serving.scaling.coordinator import LEASE, open_coordinator
from rmlora_deploy.serving.scaling.replica_registry import ReplicaRegistry

__all__ = ["Watcher"]

_PAUSE = 0.2
"""Seconds before a coordinator that did not answer is asked again."""
_log = logging.getLogger("rmlora.serve")


class Watcher:
    """Watches the coordinator of a directory; implements :class:`rmlora_deploy.serving.scaling.replica_registry.Changes`.

    Args:
        directory: shared directory.
        replica: name of this replica.
        report: returns this replica's figures, which are sent with every poll.
    """

    def __init__(self, directory: str, replica: str, report: Callable[[], Any]) -> None:
        self._directory, self._replica, self._report = directory, replica, report
        self._coordinator = open_coordinator(directory)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self._registry: ReplicaRegistry | None = None

    def start(self, registry: ReplicaRegistry) -> None:
        """Bring ``registry`` up to date, and keep it up to date from a thread.

        Raises:
            ConfigError: other replicas serve other contents from the same directories.
        """
        self._registry = registry
        self._join(registry)
        self._poll(registry)
        self._thread.start()

    def _join(self, registry: ReplicaRegistry) -> None:
        import ray

        join = getattr(self._coordinator, "join", None)
        if join is not None:  # a coordinator that an older release started has no such method
            refusal = ray.get(join.remote(registry.contents()), timeout=LEASE)
            if refusal is not None:
                raise ConfigError(refusal)

    def stop(self) -> None:
        """Stop watching, and tell the coordinator that this replica answers no more requests."""
        import ray

        self._stopping.set()
        try:
            ray.get(self._coordinator.leave.remote(self._replica), timeout=1)
        except Exception:  # noqa: BLE001 - the coordinator then waits for the lease to end
            _log.info("could not tell the coordinator that %s stops", self._replica)

    def load(self, entry: LoadedAdapter) -> None:
        """Load an adapter into all replicas; errors as in the protocol."""
        self._change(self._coordinator.load, entry)

    def unload(self, key: AdapterKey) -> None:
        """Unload an adapter that was loaded at run time; errors as in the protocol."""
        self._change(self._coordinator.unload, key)

    def remove(self, name: str, digest: str) -> None:
        """Unload an adapter of a bundle; errors as in the protocol."""
        self._change(self._coordinator.remove, name, digest)

    def _change(self, method: Any, *arguments: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            refusal = ray.get(method.remote(*arguments), timeout=3 * LEASE)
        except RayError as error:
            _log.warning("the coordinator failed: %s", error)
            raise UnreachableError(
                "It could not be confirmed that all replicas took over the change: look at /v1/models and try again."
            ) from None
        if refusal is not None:
            raise ConfigError(refusal)

    def _poll(self, registry: ReplicaRegistry) -> None:
        """Ask for changes once and apply them."""
        import ray

        asked = time.monotonic()
        answer = self._coordinator.watch.remote(self._replica, registry.state.version, self._report())
        state: AdapterState | None = ray.get(answer, timeout=LEASE)
        if state is not None:
            registry.apply(state)
        registry.trust_until(asked + LEASE)

    def _work(self) -> None:
        assert self._registry is not None  # noqa: S101 - set before the thread is started
        while not self._stopping.is_set():
            try:
                self._poll(self._registry)
            except Exception as error:  # noqa: BLE001 - whatever it is, the lease ends unless a later poll succeeds
                if self._stopping.wait(_PAUSE):
                    return
                _log.warning("the coordinator does not answer (%s), asking again", type(error).__name__)
                self._reopen()

    def _reopen(self) -> None:
        try:
            self._coordinator = open_coordinator(self._directory)
        except Exception as error:  # noqa: BLE001 - the next poll fails too, and then this is tried again
            _log.warning("there is no coordinator (%s)", type(error).__name__)
