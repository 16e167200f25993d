"""What a server serves: the graphs it has opened, and the models in them by the names that clients use.

A bundle is a model under its own name, and every adapter beside its weights is one under the adapter's.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, ConfigError, InputError
from rmlora.package import load_package
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from rmlora_deploy.bundles.adapters import check_name
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.convert_adapter import ConvertedAdapter, TryOut, convert_adapter
from rmlora_deploy.serving.errors import ForbiddenError, UnknownModelError
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.queue import Row
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Registry"]


Answer = npt.NDArray[Any]


class Registry:
    """The models of a server; safe to use from any thread.

    Args:
        settings: of the server.
        observe: called with the bundle's name, the rows and the seconds of every batch.
    """

    def __init__(
        self, settings: ServeSettings, observe: Callable[[str, Sequence[Row], float], None] | None = None
    ) -> None:
        self.settings = settings
        self._observe = observe
        self._lock = threading.Lock()
        self.graphs: dict[str, ModelRunner] = {}
        self._models: dict[str, ServedModel] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="rmlora-serve-")
        self._numbers = count()

    def open(self, path: Path, *, name: str | None = None) -> ModelRunner:
        """Open the bundle at ``path`` and serve it and its adapters.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: a name is taken already.
            ProviderError: the provider is absent or does not start.
        """
        bundle = Bundle.open(path)
        name = name or path.resolve().name
        if name in self.graphs:
            raise ConfigError(f"Two bundles are called '{name}': serve them as NAME=PATH with names of their own.")
        graph = ModelRunner(name, bundle, self.settings, self._observe)
        self.graphs[name] = graph
        self._add(ServedModel(name, graph, None, tuple(bundle.labels), bundle.manifest.max_length))
        for adapter, entry in bundle.adapters.items():
            self._add(
                ServedModel(adapter, graph, adapter, tuple(entry.labels), entry.max_length, entry.rank, entry.bytes)
            )
        return graph

    def _add(self, model: ServedModel) -> None:
        with self._lock:
            known = self._models.get(model.id)
            if known is not None:
                raise ConfigError(
                    f"The name '{model.id}' is in '{known.graph.name}' and in '{model.graph.name}': clients could not tell "
                    "them apart. Rename the bundle (NAME=PATH), or add the adapter under another name."
                )
            self._models[model.id] = model

    @property
    def models(self) -> list[ServedModel]:
        """Every model, bundles before their adapters."""
        with self._lock:
            return list(self._models.values())

    def model(self, name: str) -> ServedModel:
        """Return the model called ``name``.

        Raises:
            UnknownModelError: there is none.
        """
        with self._lock:
            found = self._models.get(name)
        if found is None:
            raise _unknown()
        return found

    def load(self, name: str, path: str) -> ServedModel:
        """Load the adapter package at ``path`` into the bundle that it fits and serve it as ``name``.

        Raises:
            ForbiddenError: the path is not in a directory that the server may load from.
            ConfigError: the name is taken or cannot be one.
            AdapterError: the package is damaged, or fits no bundle here.
        """
        number = next(self._numbers)
        file = Path(self._scratch.name) / f"{number}.onnx_adapter"
        try:
            model = self._convert(name, path, file, key=f"{name}@{number}")
            self._admit(model, file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return model

    def _convert(self, name: str, path: str, file: Path, *, key: str) -> ServedModel:
        """Write the package at ``path`` to ``file`` as its graph takes it, and describe it; errors as :meth:`load`.

        Args:
            name: what clients will call it.
            path: of the package.
            file: where it goes.
            key: what the graph will call it. Rows that wait while the name is given to another adapter keep theirs.
        """
        check_name(name)
        with self._lock:
            if name in self._models:
                raise _taken(name)
        directory = self._allowed(path)
        try:
            adapter = load_package(directory)
            graph, converted = self._fitting(name, adapter)
        except BaseMismatchError:
            raise BaseMismatchError(f"'{path}' was made for another base than the one that is served here.") from None
        except InputError as error:  # clients need not know where the directories lie
            raise type(error)(str(error).replace(str(directory), f"'{path}'")) from None
        write_onnx_adapter(file, converted.arrays)
        return ServedModel(
            name, graph, key, tuple(converted.labels), converted.max_length, converted.rank, file.stat().st_size,
            file=file,
        )  # fmt: skip

    def _admit(self, model: ServedModel, file: Path) -> None:
        """Serve an adapter whose arrays are in ``file``.

        Raises:
            ConfigError: its name is taken.
        """
        assert model.graph.session is not None and model.adapter is not None  # noqa: S101 - only such graphs fit
        model.graph.session.register(model.adapter, partial(read_onnx_adapter, file))
        try:
            self._add(model)
        except ConfigError:  # somebody else was faster
            model.graph.session.unload(model.adapter)
            raise _taken(model.id) from None

    def unload(self, name: str) -> None:
        """Serve the adapter ``name`` no longer; requests that use it already end with it.

        Raises:
            ForbiddenError: the server was not set up for adapters that come and go.
            UnknownModelError: there is none of that name.
            ConfigError: it is a bundle and not an adapter.
        """
        model = self._adapter(name)
        self._dismiss(model)
        if model.file is not None:
            model.file.unlink(missing_ok=True)

    def _adapter(self, name: str) -> ServedModel:
        """Return the adapter ``name``; errors as :meth:`unload`."""
        self._check_changes()
        model = self.model(name)
        if model.adapter is None or model.graph.session is None:
            raise ConfigError(f"'{name}' is a bundle: only adapters can be unloaded.")
        return model

    def _dismiss(self, model: ServedModel) -> None:
        assert model.graph.session is not None and model.adapter is not None  # noqa: S101 - adapters are of such graphs
        with self._lock:
            if self._models.pop(model.id, None) is None:  # somebody else was faster
                raise _unknown()
        model.graph.session.unload(model.adapter)

    def _check_changes(self) -> None:
        if not self.settings.adapter_dirs:
            raise ForbiddenError("This server's adapters stay as they are: it was started without --adapter-dir.")

    def _allowed(self, path: str) -> Path:
        """Return the real directory that ``path`` means, which lies in one that adapters may be loaded from."""
        self._check_changes()
        for directory in self.settings.adapter_dirs if path.isprintable() else ():
            root = directory.resolve()
            try:
                real = (root / path).resolve()
                if real != root and real.is_relative_to(root) and real.is_dir():
                    return real
            except OSError:  # too long, for example
                continue
        raise ForbiddenError("There is no adapter at that path in the directories that adapters may be loaded from.")

    def _fitting(self, name: str, adapter: Adapter) -> tuple[ModelRunner, ConvertedAdapter]:
        """Return the graph that ``adapter`` was made for, and what that graph takes for it."""
        reasons: list[AdapterError] = []
        for graph in self.graphs.values():
            if graph.session is None or adapter.task not in (None, graph.bundle.task.name):
                continue
            try:
                return graph, convert_adapter(
                    adapter, graph.session.lora_inputs, graph.session.input_types, name=name, task=graph.bundle.task,
                    pooling=graph.bundle.manifest.pooling, max_length=graph.bundle.manifest.max_length,
                    try_out=TryOut.of(graph.bundle, graph.session),
                )  # fmt: skip
            except AdapterError as error:
                reasons.append(error)
        if reasons:
            raise reasons[0]
        raise AdapterError("No bundle here takes adapters for that task.")

    @property
    def waiting(self) -> int:
        """Rows in all queues."""
        return sum(graph.batcher.waiting for graph in self.graphs.values())

    def close(self, timeout: float) -> bool:
        """Compute what waits, take nothing more, and return whether all was done within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        done = [graph.batcher.close(max(0.0, end - time.monotonic())) for graph in self.graphs.values()]
        self._scratch.cleanup()
        return all(done)


def _unknown() -> UnknownModelError:
    return UnknownModelError("There is no model of that name here: GET /v1/models lists them.")


def _taken(name: str) -> ConfigError:
    return ConfigError(f"There is a model '{name}' already: unload it first, or choose another name.")
