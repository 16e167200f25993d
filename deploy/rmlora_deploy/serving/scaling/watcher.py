"""A replica's line to the keeper: a thread that takes over every change, and calls that make changes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.serving.errors import UnreachableError
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter
from rmlora_deploy.serving.scaling.coordinator import LEASE, open_coordinator
from rmlora_deploy.serving.scaling.shared_registry import SharedRegistry

__all__ = ["Watcher"]

_PAUSE = 0.2
"""Seconds before a keeper that did not answer is asked again."""
_log = logging.getLogger("rmlora.serve")


class Watcher:
    """Follows the keeper of ``directory``; implements :class:`rmlora_deploy.serving.scaling.shared_registry.Changes`.

    Args:
        directory: shared directory.
        replica: name of this one.
        report: called for what this replica tells of itself with every question.
    """

    def __init__(self, directory: str, replica: str, report: Callable[[], Any]) -> None:
        self._directory, self._replica, self._report = directory, replica, report
        self._keeper = open_coordinator(directory)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)
        self._registry: SharedRegistry | None = None

    def start(self, registry: SharedRegistry) -> None:
        """Bring ``registry`` up to date, and keep it so."""
        self._registry = registry
        self._follow(registry)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; the keeper is told that this replica answers nothing more."""
        import ray

        self._stopping.set()
        try:
            ray.get(self._keeper.leave.remote(self._replica), timeout=1)
        except Exception:  # noqa: BLE001 - then it finds out by itself
            _log.info("the keeper could not be told that %s stops", self._replica)

    def load(self, entry: LoadedAdapter) -> None:
        """Make an adapter known to all; errors as in the protocol."""
        self._ask(self._keeper.load, entry)

    def unload(self, name: str, generation: str) -> None:
        """Take a loaded adapter from all; errors as in the protocol."""
        self._ask(self._keeper.unload, name, generation)

    def remove(self, name: str, digest: str) -> None:
        """Take a bundle's adapter from all; errors as in the protocol."""
        self._ask(self._keeper.remove, name, digest)

    def _ask(self, method: Any, *arguments: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            refusal = ray.get(method.remote(*arguments), timeout=3 * LEASE)
        except RayError as error:
            _log.warning("the keeper failed: %s", error)
            raise UnreachableError(
                "It could not be confirmed that all replicas took over the change: look at /v1/models and try again."
            ) from None
        if refusal is not None:
            raise ConfigError(refusal)

    def _follow(self, registry: SharedRegistry) -> None:
        """Ask once for changes and take them over."""
        import ray

        asked = time.monotonic()
        question = self._keeper.follow.remote(self._replica, registry.table.version, self._report())
        table: AdapterState | None = ray.get(question, timeout=LEASE)
        if table is not None:
            registry.apply(table)
        registry.trust(asked + LEASE)

    def _work(self) -> None:
        assert self._registry is not None  # noqa: S101 - started with one
        while not self._stopping.is_set():
            try:
                self._follow(self._registry)
            except Exception as error:  # noqa: BLE001 - whatever it is, the lease ends unless a later question succeeds
                if self._stopping.wait(_PAUSE):
                    return
                _log.warning("the keeper does not answer (%s), it is asked again", type(error).__name__)
                self._reopen()

    def _reopen(self) -> None:
        try:
            self._keeper = open_coordinator(self._directory)
        except Exception as error:  # noqa: BLE001 - the next question fails too, and it is tried again
            _log.warning("there is no keeper (%s)", type(error).__name__)
