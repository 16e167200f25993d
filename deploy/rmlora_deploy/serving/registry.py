"""The models of a server by the names that clients use, and the runners that compute them.

A bundle is a model under its own name; each of its adapters is another model under the adapter's name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, ConfigError, InputError, OutputError, some_of
from rmlora.file_identity import FileIdentity
from rmlora.nearest_names import nearest_names
from rmlora.package import load_package
from rmlora.storage import sha256_file
from rmlora.wording import nearest
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from rmlora_deploy.bundles.adapters import check_name
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.convert_adapter import ConvertedAdapter, convert_adapter
from rmlora_deploy.bundles.manifest import AdapterEntry
from rmlora_deploy.bundles.opening import opening
from rmlora_deploy.bundles.sources import doubtful_base_of
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.errors import ForbiddenError, UnavailableError, UnknownModelError
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.queue import Row
from rmlora_deploy.serving.scratch import Scratch
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.served_tasks import check_served

__all__ = ["Registry"]

_MAX_SHOWN = 100
"""Characters of an unknown name that an error repeats."""
_log = logging.getLogger("rmlora.serve")


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
        self.runners: dict[str, ModelRunner] = {}
        """Bundle → what runs it."""
        self._models: dict[str, ServedModel] = {}
        self._scratch = Scratch()
        self._generations = count()

    def open(self, path: Path, *, name: str | None = None) -> ModelRunner:
        """Open the bundle at ``path``, and serve it and its adapters.

        Raises:
            InputError: it is not a bundle, or damaged.
            ConfigError: a name is already taken.
            ProviderError: the provider is missing or does not start.
        """
        name = name or path.resolve().name
        if name in self.runners:
            raise ConfigError(f"Two bundles are called '{name}': serve them as NAME=PATH with different names.")
        with opening(path) as bundle:
            check_served(bundle)
            runner = ModelRunner(name, bundle, self.settings, self._observe)
        self.runners[name] = runner
        if runner.answers_alone:
            manifest = bundle.manifest
            self._add(
                ServedModel(
                    name, runner, None, tuple(bundle.labels), manifest.max_length,
                    function_to_apply=manifest.function_to_apply, input_form=bundle.input_form(), no_answer=bundle.no_answer(),
                    threshold=manifest.threshold,
                )
            )  # fmt: skip
        for adapter, entry in bundle.adapters.items():
            self._add(ServedModel.of_entry(adapter, runner, adapter, entry))
        return runner

    def _add(self, model: ServedModel) -> None:
        with self._lock:
            known = self._models.get(model.id)
            if known is not None:
                raise ConfigError(
                    f"Both '{known.runner.name}' and '{model.runner.name}' have a model '{model.id}', and clients could not "
                    "tell them apart: rename the bundle (NAME=PATH), or add the adapter under another name."
                )
            self._models[model.id] = model

    @property
    def models(self) -> list[ServedModel]:
        """All models; a bundle comes before its adapters."""
        with self._lock:
            return list(self._models.values())

    def model(self, name: str) -> ServedModel:
        """Return the model called ``name``.

        Raises:
            UnknownModelError: there is none.
        """
        found = self.find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def find(self, name: str) -> ServedModel | None:
        """Return the model called ``name``, or None if there is none."""
        with self._lock:
            return self._models.get(name)

    def _unknown(self, name: str) -> UnknownModelError:
        """Return the error for a name that no model has."""
        runner = self.runners.get(name)
        shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
        if runner is not None:
            names = [model.id for model in self.models if model.runner is runner]
            return UnknownModelError(
                f"The base of '{shown}' has no trained head of its own and answers nothing alone: name one of its adapters "
                f"({some_of(names) or 'it has none'})."
            )
        near = nearest_names(name, [model.id for model in self.models])
        hint = f"{nearest(near)}; " if near else ""
        return UnknownModelError(f"There is no model '{shown}': {hint}GET /v1/models lists all.")

    def load(self, name: str, path: str) -> ServedModel:
        """Load the adapter package at ``path`` into the bundle that it fits, and serve it as ``name``.

        Raises:
            ForbiddenError: the path is not in a directory that the server may load from.
            ConfigError: the name is taken or not a valid one.
            AdapterError: the package is damaged, or fits none of the bundles.
        """
        key = AdapterKey(name, next(self._generations))
        file = self._scratch.path / f"{key.generation}.onnx_adapter"
        try:
            model = self._convert(key, path, file)
            self._serve(model, file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return model

    def _convert(self, key: AdapterKey, path: str, file: Path) -> ServedModel:
        """Convert the package at ``path`` for the graph it fits, write that to ``file`` and describe it; errors as :meth:`load`.

        Args:
            key: its name, and a generation of its own: rows that are waiting while the name is given to another adapter
                keep theirs.
            path: of the package.
            file: file to write.
        """
        check_name(key.name)
        with self._lock:
            if key.name in self._models or key.name in self.runners:
                raise _taken(key.name)
        directory = self._allowed(path)
        try:
            adapter = load_package(directory)
            runner, converted = self._fitting(key.name, adapter)
        except BaseMismatchError:
            raise BaseMismatchError(f"'{path}' was made for another base than the one that is served here.") from None
        except InputError as error:  # clients need not know the paths of the directories
            raise AdapterError(str(error).replace(str(directory), f"'{path}'")) from None
        if (other := doubtful_base_of(directory, runner.bundle.manifest)) is not None:
            _log.warning(
                "adapter '%s' was made for '%s', which may be another base than that of %s",
                key.name,
                other,
                runner.name,
            )
        try:
            write_onnx_adapter(file, converted.arrays)
        except OutputError as error:
            _log.error("adapter '%s' cannot be stored: %s", key.name, error)
            raise UnavailableError("The server cannot store the adapter: its log says why.") from None
        return ServedModel(
            key.name, runner, key, tuple(converted.labels), converted.max_length, converted.rank, file.stat().st_size,
            function_to_apply=converted.function_to_apply,
            input_form=runner.bundle.task.inputs.form or converted.adapter.input_form, no_answer=converted.adapter.no_answer,
            threshold=converted.adapter.threshold, file=file, sha256=sha256_file(file),
        )  # fmt: skip

    def _serve(self, model: ServedModel, file: Path) -> None:
        """Serve an adapter whose arrays are in ``file``, for as long as that is the file it is now.

        Raises:
            ConfigError: its name is taken.
        """
        assert model.runner.session is not None and model.adapter is not None  # noqa: S101 - adapters fit only such
        identity = FileIdentity(file, model.sha256)
        model.runner.session.register(model.adapter, partial(read_onnx_adapter, file, identity))
        try:
            self._add(model)
        except ConfigError:  # another call took the name meanwhile
            model.runner.session.unload(model.adapter)
            raise _taken(model.id) from None

    def unload(self, name: str) -> None:
        """Stop serving the adapter ``name``; batches that use it already are completed.

        Raises:
            ForbiddenError: the server was not set up to load and unload adapters.
            UnknownModelError: there is none of that name.
            ConfigError: it is a bundle, not an adapter.
        """
        model = self._adapter(name)
        self._remove(model)
        if model.file is not None:
            model.file.unlink(missing_ok=True)

    def _adapter(self, name: str) -> ServedModel:
        """Return the adapter ``name``; errors as :meth:`unload`."""
        self._check_loading_is_on()
        model = self.model(name)
        if model.adapter is None or model.runner.session is None:
            raise ConfigError(f"'{name}' is a bundle: only adapters can be unloaded.")
        return model

    def _remove(self, model: ServedModel) -> None:
        assert model.runner.session is not None and model.adapter is not None  # noqa: S101 - it is an adapter
        with self._lock:
            removed = self._models.pop(model.id, None)
        if removed is None:  # another call removed it meanwhile
            raise self._unknown(model.id)
        model.runner.session.unload(model.adapter)

    @property
    def merged_only(self) -> bool:
        """True if no bundle takes adapters."""
        return all(runner.session is None for runner in self.runners.values())

    @property
    def no_loading(self) -> str | None:
        """Why no adapters can be loaded and unloaded; None if they can."""
        if self.merged_only:
            return (
                "This server loads and unloads no adapters: its bundles have theirs merged, and only one exported with "
                "--mode branches takes others."
            )
        if not self.settings.adapter_dirs:
            return "This server loads and unloads no adapters: it was started without --adapter-dir."
        return None

    def exchange(
        self, runner: ModelRunner, removed: Collection[str], added: Mapping[str, AdapterEntry], bundle: Bundle
    ) -> None:
        """Exchange adapters of a bundle, all at once.

        Args:
            runner: of the bundle.
            removed: names that no longer mean what they did; those that are not served are ignored.
            added: name → new adapter.
            bundle: as it is on disk now.

        Raises:
            ConfigError: a name is taken by a model that is not an adapter of the bundle's.
        """
        keys = {name: AdapterKey(name, next(self._generations)) for name in added}
        new = {name: ServedModel.of_entry(name, runner, keys[name], entry) for name, entry in added.items()}
        with self._lock:
            old = {
                name: model
                for name in removed
                if (model := self._models.get(name)) and model.runner is runner and model.adapter and model.file is None
            }
            for name in new:
                if name in self.runners or (name in self._models and name not in old):
                    raise _taken(name)
            for name, key in keys.items():
                assert runner.session is not None  # noqa: S101 - merged bundles have no adapters
                runner.session.register(key, bundle.loader(added[name]))
            self._models = {**{name: model for name, model in self._models.items() if name not in old}, **new}
            runner.bundle = bundle
        for model in old.values():
            self._forget_later(model)

    def _forget_later(self, model: ServedModel) -> None:
        """Unload an adapter that no new request can name, once those that named it are answered."""
        assert model.runner.session is not None and model.adapter is not None  # noqa: S101 - it is an adapter
        timer = threading.Timer(
            self.settings.timeout + self.settings.body_timeout, model.runner.session.unload, (model.adapter,)
        )
        timer.daemon = True
        timer.start()

    def _check_loading_is_on(self) -> None:
        if (reason := self.no_loading) is not None:
            raise ForbiddenError(reason)

    def _allowed(self, path: str) -> Path:
        """Return the directory that ``path`` means, with links resolved, if it and its files are inside one of ``adapter_dirs``.

        Raises:
            ForbiddenError: it is not.
        """
        self._check_loading_is_on()
        for directory in self.settings.adapter_dirs if path.isprintable() else ():
            root = directory.resolve()
            try:
                real = (root / path).resolve()
                if real != root and real.is_relative_to(root) and real.is_dir() and _stays_inside(real, root):
                    return real
            except OSError:  # too long, for example
                continue
        raise ForbiddenError("There is no adapter at that path in the directories this server may load from.")

    def _fitting(self, name: str, adapter: Adapter) -> tuple[ModelRunner, ConvertedAdapter]:
        """Return the runner of the bundle that ``adapter`` was made for, and the adapter as its graph takes it."""
        reasons: list[AdapterError] = []
        for runner in self.runners.values():
            bundle, session = runner.bundle, runner.session
            if session is None or adapter.task not in (None, bundle.task.name):
                continue
            try:
                return runner, convert_adapter(
                    adapter, session.lora_inputs, session.input_types, name=name, task=bundle.task,
                    pooling=bundle.manifest.pooling, max_length=bundle.manifest.max_length,
                    try_out=runner.try_out(), base_config=bundle.base_config,
                )  # fmt: skip
            except AdapterError as error:
                reasons.append(error)
        if reasons:
            raise reasons[0]
        raise AdapterError("No bundle here accepts adapters for that task.")

    def available(self, model: ServedModel) -> bool:
        """Return True if a model can be used as far as is known (:mod:`rmlora_deploy.serving.availability`)."""
        return model.runner.availability.allows(model.adapter)

    def look_again(self) -> None:
        """Look in the background whether models that could not be used can be used now."""
        for runner in self.runners.values():
            runner.availability.look_again()

    @property
    def waiting(self) -> int:
        """Rows in all queues."""
        return sum(runner.queue.waiting for runner in self.runners.values())

    def close(self, timeout: float) -> bool:
        """Accept nothing more, compute what waits, and return True if that took at most ``timeout`` seconds."""
        end = time.monotonic() + timeout
        done = [runner.queue.close(max(0.0, end - time.monotonic())) for runner in self.runners.values()]
        self._scratch.close()
        return all(done)


def _stays_inside(directory: Path, root: Path) -> bool:
    """Return True unless a file in ``directory`` is a link that leads out of ``root``."""
    return all(item.resolve().is_relative_to(root) for item in directory.iterdir())


def _taken(name: str) -> ConfigError:
    return ConfigError(f"There is a model '{name}' already: unload it first, or choose another name.")
