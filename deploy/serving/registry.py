"""What a server serves: the graphs it has opened, and the models in them by the names that clients use.

A bundle is a model under its own name, and every adapter beside its weights is one under the adapter's.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.graph.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from converters.graph.slot_arrays import slot_arrays
from deploy.adapters import check_name
from deploy.bundle import Bundle
from deploy.export.pooling import check_pooling
from deploy.export.processor import trained_length
from deploy.preprocess import Preprocessor
from deploy.providers import run_error
from deploy.runtime import AdapterSession
from deploy.runtime.bank import Bank
from deploy.serving.batching import Batcher, Row
from deploy.serving.errors import ForbiddenError, UnknownModelError
from deploy.serving.settings import ServeSettings
from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, ConfigError, InputError
from rmlora.models import adapter_labels, without_idle
from rmlora.package import load_package
from rmlora.tasks import get_task

__all__ = ["Graph", "Registry", "Served"]

_ENDLESS = 1_000_000
"""Tokenizers without a limit report a number far above this."""

Answer = npt.NDArray[Any]


@dataclass(frozen=True)
class Served:
    """A model that clients can name."""

    id: str
    graph: Graph
    adapter: str | None
    """Which adapter of the graph: its own name, and for one loaded at run time ``@`` and what tells it from others that
    had the name; None for the base, or for what is merged."""
    labels: tuple[str, ...]
    max_length: int | None
    rank: int | None = None
    nbytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    file: Path | None = None
    """What the server wrote for it; None for what belongs to a bundle."""

    @property
    def task(self) -> str:
        """Task of the model."""
        return self.graph.bundle.task


class Graph:
    """An opened bundle, its queue and the batches it computes."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        settings: ServeSettings,
        observe: Callable[[str, Sequence[Row], float], None] | None = None,
    ) -> None:
        self.name, self.bundle = name, bundle
        self._preprocessor: Preprocessor = bundle.preprocessor()
        self._tokenizing = threading.Lock()  # a tokenizer keeps its settings in itself
        self.session: AdapterSession | None = None
        if bundle.mode == "branches":
            self.session = bundle.adapter_session(
                settings.provider,
                threads=settings.threads,
                bank=settings.bank,
                rows=settings.max_batch,
                lanes=settings.workers,
            )
            self._run = self._run_adapters
        else:
            self._merged = bundle.session(settings.provider, threads=settings.threads)
            self._run = self._run_merged
        self.batcher = Batcher(
            self._run,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            workers=settings.workers,
            observe=partial(observe, name) if observe is not None else None,
        )

    @property
    def modality(self) -> str:
        """``text`` or ``image``."""
        return self._preprocessor.task.modality

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text that the model can read."""
        limits = (
            getattr(self._preprocessor.processor, "model_max_length", None),
            self.bundle.manifest.get("max_length"),
        )
        return max((int(limit) for limit in limits if limit and limit < _ENDLESS), default=512)

    @property
    def bank(self) -> Bank | None:
        """Which adapters are in memory; None where one is merged."""
        return self.session.bank if self.session is not None else None

    def rows(self, inputs: Sequence[Any], model: Served) -> list[Row]:
        """Return texts or encoded pictures as rows for ``model``; errors as those of the preprocessor."""
        with self._tokenizing:
            return self._rows(inputs, model)

    def rows_at_once(self, inputs: Sequence[Any], model: Served) -> list[Row] | None:
        """Return the same unless another thread is at it, for which an event loop must not wait: then None."""
        if not self._tokenizing.acquire(blocking=False):
            return None
        try:
            return self._rows(inputs, model)
        finally:
            self._tokenizing.release()

    def _rows(self, inputs: Sequence[Any], model: Served) -> list[Row]:
        made = self._preprocessor.rows(inputs, lengths=[model.max_length] * len(inputs))
        lane = self.modality
        return [Row(arrays, model.adapter, lane, len(next(iter(arrays.values())))) for arrays in made]

    def submit(self, rows: Sequence[Row]) -> Future[list[Answer]]:
        """Queue rows, and have their adapters read while they wait; errors as those of :meth:`Batcher.submit`."""
        answers = self.batcher.submit(rows)
        if self.session is not None:
            self.session.prefetch([row.adapter for row in rows])
        return answers

    def _run_adapters(self, rows: Sequence[Row]) -> Sequence[Answer]:
        assert self.session is not None  # noqa: S101 - chosen for bundles that have one
        try:
            return self.session.run(
                self._preprocessor.collate([row.arrays for row in rows]), [row.adapter for row in rows]
            )
        except InputError:
            known = self.session.bank.names
            if any(row.adapter is not None and row.adapter not in known for row in rows):
                raise UnknownModelError("The model was unloaded before this request was computed.") from None
            raise

    def _run_merged(self, rows: Sequence[Row]) -> Sequence[Answer]:
        try:
            return list(np.asarray(self._merged.run(None, self._preprocessor.collate([row.arrays for row in rows]))[0]))
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error) from None


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
        self.graphs: dict[str, Graph] = {}
        self._models: dict[str, Served] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="rmlora-serve-")
        self._numbers = count()

    def open(self, path: Path, *, name: str | None = None) -> Graph:
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
        graph = Graph(name, bundle, self.settings, self._observe)
        self.graphs[name] = graph
        self._add(Served(name, graph, None, tuple(bundle.labels), bundle.manifest.get("max_length")))
        for adapter, entry in bundle.adapters.items():
            self._add(
                Served(
                    adapter, graph, adapter, tuple(entry["labels"]), entry["max_length"], entry["rank"], entry["bytes"]
                )
            )
        return graph

    def _add(self, model: Served) -> None:
        with self._lock:
            known = self._models.get(model.id)
            if known is not None:
                raise ConfigError(
                    f"The name '{model.id}' is in '{known.graph.name}' and in '{model.graph.name}': clients could not tell "
                    "them apart. Rename the bundle (NAME=PATH), or add the adapter under another name."
                )
            self._models[model.id] = model

    @property
    def models(self) -> list[Served]:
        """Every model, bundles before their adapters."""
        with self._lock:
            return list(self._models.values())

    def model(self, name: str) -> Served:
        """Return the model called ``name``.

        Raises:
            UnknownModelError: there is none.
        """
        with self._lock:
            found = self._models.get(name)
        if found is None:
            raise _unknown()
        return found

    def load(self, name: str, path: str) -> Served:
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

    def _convert(self, name: str, path: str, file: Path, *, key: str) -> Served:
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
            graph, arrays = self._fitting(adapter)
        except BaseMismatchError:
            raise BaseMismatchError(f"'{path}' was made for another base than the one that is served here.") from None
        except InputError as error:  # clients need not know where the directories lie
            raise type(error)(str(error).replace(str(directory), f"'{path}'")) from None
        write_onnx_adapter(file, arrays)
        return Served(
            name, graph, key, tuple(adapter_labels(adapter, get_task(graph.bundle.task))),
            trained_length(adapter) or graph.bundle.manifest.get("max_length"),
            max(module.active_rank for module in adapter.modules.values()), file.stat().st_size, file=file,
        )  # fmt: skip

    def _admit(self, model: Served, file: Path) -> None:
        """Serve an adapter whose arrays are in ``file``.

        Raises:
            ConfigError: its name is taken.
        """
        assert model.graph.session is not None and model.adapter is not None  # noqa: S101 - only such graphs fit
        model.graph.session.load(model.adapter, partial(read_onnx_adapter, file))
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

    def _adapter(self, name: str) -> Served:
        """Return the adapter ``name``; errors as :meth:`unload`."""
        self._check_changes()
        model = self.model(name)
        if model.adapter is None or model.graph.session is None:
            raise ConfigError(f"'{name}' is a bundle: only adapters can be unloaded.")
        return model

    def _dismiss(self, model: Served) -> None:
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

    def _fitting(self, adapter: Adapter) -> tuple[Graph, dict[str, npt.NDArray[Any]]]:
        """Return the graph that ``adapter`` was made for, and what it feeds there."""
        reasons: list[AdapterError] = []
        for graph in self.graphs.values():
            if graph.session is None or adapter.task not in (None, graph.bundle.task):
                continue
            try:
                check_pooling(adapter, graph.bundle.manifest.get("pooling"))
                fed = without_idle(adapter, get_task(graph.bundle.task))
                return graph, slot_arrays(fed, graph.session.slots, graph.session.slot_types)
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
