"""A registry that takes the adapters loaded at run time from the adapter state, which all replicas share."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rmlora.errors import ConfigError
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.bundles.meaning import content_digest
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.errors import UnreachableError
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter, adapter_file
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Changes", "ReplicaRegistry", "graph_digest"]

_log = logging.getLogger("rmlora.serve")


class Changes(Protocol):
    """Makes changes in all replicas, this one included; every method returns once all have them.

    Raises:
        ConfigError: the change is not possible.
        UnreachableError: it is unknown whether the change was made.
    """

    def load(self, entry: LoadedAdapter) -> None: ...
    def unload(self, key: AdapterKey) -> None: ...
    def remove(self, name: str, digest: str) -> None: ...


class ReplicaRegistry(Registry):
    """Models of one replica.

    Args:
        settings: of the server.
        observe: as for :class:`Registry`.
        directory: shared directory, which holds the files of loaded adapters.
        changes: called to load and unload.
    """

    def __init__(
        self, settings: ServeSettings, observe: Callable[..., None] | None, *, directory: Path, changes: Changes
    ) -> None:
        super().__init__(settings, observe)
        self._directory, self._changes = directory, changes
        self._trusted_until = 0.0
        self.state = AdapterState(version=-1)
        """The state that was last applied."""

    def contents(self) -> dict[str, str]:
        """Return directory → hash of the content of every bundle."""
        bundles = [runner.bundle for runner in self.runners.values()]
        return {str(bundle.path.resolve()): content_digest(bundle.manifest) for bundle in bundles}

    def trust_until(self, end: float) -> None:
        """Answer by the current state until then (``time.monotonic()``)."""
        self._trusted_until = end

    def model(self, name: str) -> ServedModel:
        """Return the model called ``name``.

        Raises:
            UnknownModelError: there is none.
            UnreachableError: the state may have changed without this replica knowing.
        """
        if time.monotonic() > self._trusted_until:
            raise UnreachableError(
                "This replica lost contact with the coordinator and does not know what is served now."
            )
        return super().model(name)

    def load(self, name: str, path: str) -> ServedModel:
        """Load an adapter into all replicas; errors as those of :meth:`Registry.load` and :class:`Changes`."""
        key = AdapterKey(name, uuid.uuid4().int)
        file = self._directory / adapter_file(key)
        model = self._convert(key, path, file)
        entry = LoadedAdapter(
            key, model.runner.name, graph_digest(model.runner), model.labels, model.max_length, model.rank, model.nbytes,
            model.created, model.function_to_apply, model.input_form, model.no_answer, model.threshold, model.sha256,
        )  # fmt: skip
        try:
            self._changes.load(entry)
        except ConfigError:
            file.unlink(missing_ok=True)
            raise
        return model

    def unload(self, name: str) -> None:
        """Unload an adapter from all replicas; errors as those of :meth:`Registry.unload` and :class:`Changes`."""
        model = self._adapter(name)
        if isinstance(model.adapter, AdapterKey):
            self._changes.unload(model.adapter)
            (self._directory / adapter_file(model.adapter)).unlink(missing_ok=True)
        else:
            self._changes.remove(name, model.runner.bundle.adapter(name).sha256)

    def apply(self, state: AdapterState) -> None:
        """Serve what ``state`` says."""
        for model in self.models:
            if model.adapter is not None and not _is_served(model, state):
                self._remove(model)
        served = {model.adapter for model in self.models}
        for entry in state.loaded.values():
            runner = self.runners.get(entry.bundle)
            if entry.key in served or runner is None or runner.session is None:
                continue
            if graph_digest(runner) != entry.graph_digest:
                continue
            model = ServedModel(
                entry.name, runner, entry.key, entry.labels, entry.max_length, entry.rank, entry.nbytes, entry.created,
                entry.function_to_apply, entry.input_form, entry.no_answer, entry.threshold,
                sha256=entry.sha256 or _digest(self._directory / adapter_file(entry.key)),
            )  # fmt: skip
            try:
                self._serve(model, self._directory / adapter_file(entry.key))
            except (
                ConfigError
            ) as error:  # a new release of the bundle has its own adapter of that name, which is served
                _log.warning("%s", error)
        self.state = state


def _digest(file: Path) -> str:
    """Return the SHA-256 of an adapter that an older release recorded without it."""
    try:
        return sha256_file(file)
    except OSError:
        return ""  # requests for the adapter are refused, since no file has this one


def graph_digest(runner: ModelRunner) -> str:
    """Return the SHA-256 of the runner's graph file."""
    return runner.bundle.manifest.model.files[MODEL_FILE]


def _is_served(model: ServedModel, state: AdapterState) -> bool:
    """Return True if ``state`` still has an adapter: the generation that was loaded, or the bundle's file."""
    if isinstance(model.adapter, AdapterKey):
        entry = state.loaded.get(model.id)
        return entry is not None and entry.key == model.adapter
    return state.removed.get(model.id) != model.runner.bundle.adapter(model.id).sha256
