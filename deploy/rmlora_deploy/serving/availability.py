"""Which models of a bundle can be used at the moment.

A model is what its files were when the server opened them. If an adapter's file is missing, damaged or another one when it
has to be read again, requests for this adapter are refused until the right file is back. If somebody has written into the
graph's weights, all models of the bundle are refused. Either way the server looks again by itself: once a second while it is
asked for such a model, and whenever somebody asks for its health or metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rmlora.errors import ConfigError
from rmlora.file_identity import ChangedFileError
from rmlora_deploy.bundles.mapped_files import MappedFiles
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.runtime.adapters.cache import AdapterCache
from rmlora_deploy.runtime.adapters.failures import UnreadableAdapterError
from rmlora_deploy.runtime.adapters.prefetch import Prefetcher
from rmlora_deploy.serving.errors import UnavailableError

__all__ = ["Availability"]

_PAUSE = 1.0
"""Seconds between two looks at the same files."""
_AT_ONCE = 32
"""Adapters that are looked at in one go."""
_ATTEMPTS = 3
"""How often a batch is computed if files change meanwhile."""
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_log = logging.getLogger("rmlora.serve")


class Availability:
    """Refuses what cannot be used, and notices when it can be used again; safe to use from any thread.

    Args:
        bundle: its name.
        files: the graph's weights.
    """

    def __init__(self, bundle: str, files: MappedFiles) -> None:
        self._bundle, self._files = bundle, files
        self._cache: AdapterCache | None = None
        self._graph_failure: str | None = None
        self._looked: dict[AdapterName | None, float] = {}
        """Adapter, None for the graph → when it was last looked at (``time.monotonic``)."""
        self._reader = Prefetcher()

    def watch(self, cache: AdapterCache) -> None:
        """Watch the adapters in ``cache`` too."""
        self._cache = cache
        cache.failures.on_change = self._log_adapter

    @property
    def adapters(self) -> Mapping[AdapterName, str]:
        """Adapter that cannot be used → why."""
        return self._cache.failures.reasons if self._cache is not None else {}

    def allows(self, adapter: AdapterName | None) -> bool:
        """Return True if an adapter, or the base, can be used as far as is known."""
        return self._graph_failure is None and adapter not in self.adapters

    def check(self, adapters: Iterable[AdapterName | None]) -> None:
        """Refuse rows for which an adapter or the graph cannot be used.

        Raises:
            UnavailableError: that is so for one of ``adapters``.
        """
        if self._graph_failure is None and not self.adapters:
            return
        for adapter in adapters:
            if not self.allows(adapter):
                self.look_again()
                raise _unavailable(self._bundle if self._graph_failure is not None else adapter)

    def look_again(self) -> None:
        """Look in the background whether what could not be used can be used now."""
        now = time.monotonic()
        due = [name for name in self.adapters if now - self._looked.get(name, 0.0) >= _PAUSE]
        for name in sorted(due, key=lambda name: self._looked.get(name, 0.0))[:_AT_ONCE]:
            self._looked[name] = now
            if self._cache is not None:
                self._cache.read_again(name)
        if self._graph_failure is not None and now - self._looked.get(None, 0.0) >= _PAUSE:
            self._looked[None] = now
            self._reader.submit(self._check_graph)

    def guarded(
        self, run: Callable[[Sequence[_Item]], Sequence[_Answer]]
    ) -> Callable[[Sequence[_Item]], Sequence[_Answer]]:
        """Return ``run``, which computes a batch, with errors of the server's files told from those of a request.

        What was computed while somebody wrote to the graph's weights is thrown away.

        Raises:
            UnavailableError: an adapter of the batch, or the graph, cannot be used.
        """

        def run_checked(rows: Sequence[_Item]) -> Sequence[_Answer]:
            for _ in range(_ATTEMPTS):
                before = self._files.statuses()
                self._check_graph()
                if self._graph_failure is not None:
                    break
                answers = self._run(run, rows)
                if self._files.statuses() == before:
                    return answers
            raise _unavailable(self._bundle)

        return run_checked

    def _run(self, run: Callable[[Sequence[_Item]], Sequence[_Answer]], rows: Sequence[_Item]) -> Sequence[_Answer]:
        try:
            return run(rows)
        except UnreadableAdapterError as error:
            raise _unavailable(error.adapter) from None
        except ConfigError as error:  # of the server, since the request was checked: memory for adapters, for example
            _log.error("%s: %s", self._bundle, error)
            raise _unavailable(self._bundle) from None

    def _check_graph(self) -> None:
        try:
            self._files.check()
            failure = None
        except ChangedFileError as error:
            failure = str(error)
        if failure == self._graph_failure:
            return
        self._graph_failure = failure
        if failure is None:
            _log.info("%s can be used again: its weights are what they were", self._bundle)
        else:
            _log.error("%s cannot be used any more, with all its adapters: %s", self._bundle, failure)

    def _log_adapter(self, name: AdapterName, reason: str | None) -> None:
        if reason is None:
            _log.info("adapter '%s' of %s can be used again", name, self._bundle)
        else:
            _log.error("adapter '%s' of %s cannot be used: %s", name, self._bundle, reason)


def _unavailable(name: object) -> UnavailableError:
    return UnavailableError(
        f"'{name}' is not available at the moment, because its files on the server changed or cannot be read: the server's "
        "log says why."
    )
