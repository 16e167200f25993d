"""A registry whose run-time adapters stand in the table that all replicas share."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.serving.errors import UnreachableError
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Changes", "SharedRegistry", "graph_digest"]

_log = logging.getLogger("rmlora.serve")


class Changes(Protocol):
    """Who makes changes known to all replicas, this one included; every method returns once all have them.

    Raises:
        ConfigError: the change is not possible.
        UnreachableError: nobody can tell whether it was made.
    """

    def load(self, entry: LoadedAdapter) -> None: ...
    def unload(self, name: str, generation: str) -> None: ...
    def remove(self, name: str, digest: str) -> None: ...


class SharedRegistry(Registry):
    """Models of one replica.

    Args:
        settings: of the server.
        observe: as for :class:`Registry`.
        directory: where loaded adapters lie, for all replicas.
        changes: asked to load and unload.
    """

    def __init__(
        self, settings: ServeSettings, observe: Callable[..., None] | None, *, directory: Path, changes: Changes
    ) -> None:
        super().__init__(settings, observe)
        self._directory, self._changes = directory, changes
        self._trusted_until = 0.0
        self.table = AdapterState(version=-1)
        """What was last taken over."""

    def trust(self, until: float) -> None:
        """Answer by the table until then (``time.monotonic()``)."""
        self._trusted_until = until

    def model(self, name: str) -> ServedModel:
        """Return the model called ``name``.

        Raises:
            UnknownModelError: there is none.
            UnreachableError: the table may have changed meanwhile.
        """
        if time.monotonic() > self._trusted_until:
            raise UnreachableError("This replica has lost touch with the others and does not know what they serve.")
        return super().model(name)

    def load(self, name: str, path: str) -> ServedModel:
        """Load an adapter into all replicas; errors as those of :meth:`Registry.load` and :class:`Changes`."""
        generation = uuid.uuid4().hex
        file = self._directory / f"{generation}.onnx_adapter"
        model = self._convert(name, path, file, key=f"{name}@{generation}")
        entry = LoadedAdapter(
            name, generation, model.graph.name, graph_digest(model.graph), model.labels, model.max_length, model.rank,
            model.nbytes, model.created,
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
        assert model.adapter is not None  # noqa: S101 - checked there
        _, at, generation = model.adapter.partition("@")
        if at:
            self._changes.unload(name, generation)
            (self._directory / f"{generation}.onnx_adapter").unlink(missing_ok=True)
        else:
            self._changes.remove(name, str(model.graph.bundle.adapter(name).sha256))

    def apply(self, table: AdapterState) -> None:
        """Serve what ``table`` says."""
        for model in self.models:
            if model.adapter is not None and not _stays(model, table):
                self._dismiss(model)
        served = {model.adapter for model in self.models}
        for entry in table.loaded.values():
            graph = self.graphs.get(entry.bundle)
            key = f"{entry.name}@{entry.generation}"
            if key in served or graph is None or graph.session is None or graph_digest(graph) != entry.graph:
                continue
            model = ServedModel(
                entry.name, graph, key, entry.labels, entry.max_length, entry.rank, entry.nbytes, entry.created
            )
            try:
                self._admit(model, self._directory / entry.file)
            except ConfigError as error:  # a new release of the bundle brought one of that name, which is served
                _log.warning("%s", error)
        self.table = replace(table)


def graph_digest(graph: ModelRunner) -> str:
    """Return the SHA-256 of the graph's file."""
    files = graph.bundle.manifest.model.files
    return str(files[MODEL_FILE])


def _stays(model: ServedModel, table: AdapterState) -> bool:
    assert model.adapter is not None  # noqa: S101 - asked for adapters only
    _, at, generation = model.adapter.partition("@")
    if at:
        entry = table.loaded.get(model.id)
        return entry is not None and entry.generation == generation
    return bool(table.removed.get(model.id) != model.graph.bundle.adapter(model.id).sha256)
