"""A bundle: the directory that an export writes, with everything needed to run the model without torch.

::

    manifest.json            what the bundle is, what it was made from, and what verification measured
    model.onnx               the graph
    model.onnx.data          its weights; absent for small models, which hold them in model.onnx
    config.json, LICENSE     of the base
    tokenizer.json … or preprocessor_config.json    the tokenizer or image processor
    reference.safetensors    sample batches and PyTorch's outputs on them, to verify the bundle without torch
    genai_config.json        of a language model: what onnxruntime_genai loads it by
    README.md                the model card

In mode ``branches`` the graph is the base, ``reference.safetensors`` holds the outputs of the base's graph before branches
were inserted, and there are two more files for each adapter:

::

    adapters/<name>.onnx_adapter             its arrays for the graph's LoRA inputs, in onnxruntime's adapter format
    adapters/<name>.reference.safetensors    PyTorch's outputs with the adapter, on the same sample batches
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any, TypeVar

from rmlora.confine import confine, confine_files
from rmlora.directory_kind import holds_adapter, holds_model
from rmlora.errors import ConfigError, InputError, some_of
from rmlora.file_identity import FileIdentity
from rmlora.file_models import BaseConfig
from rmlora.json_files import check_values
from rmlora.nearest_names import nearest_beside
from rmlora.pooling import Pooling
from rmlora.readable import is_readable_directory, is_readable_file
from rmlora.scoring import Scoring
from rmlora.storage import read_json, sha256_file, write_json
from rmlora.tasks import Task, get_task
from rmlora.text_pair import InputForm
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import external_files, load_model
from rmlora_deploy.bundles.manifest import AdapterEntry, AdapterSource, BaseEntry, Manifest, read_manifest
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.providers import create_session

if TYPE_CHECKING:
    import onnxruntime as ort

    from rmlora_converters.graph.files.onnx_adapter import AdapterArrays
    from rmlora_deploy.runtime import AdapterSession
    from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["MANIFEST_FILE", "MODEL_FILE", "REFERENCE_FILE", "Bundle"]

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.safetensors"

_Entry = TypeVar("_Entry")


@dataclass
class Bundle:
    """A bundle on disk and its manifest (:mod:`rmlora_deploy.bundles.manifest`)."""

    path: Path
    manifest: Manifest
    trust_remote_code: bool = False
    """Run code that comes with the tokenizer or the base; True only if the user asked for it."""

    @classmethod
    def open(cls, path: Path | str, *, check_files: bool = True, trust_remote_code: bool = False) -> Bundle:
        """Read the manifest of the bundle at ``path`` and, with ``check_files``, compare every file with its SHA-256.

        Raises:
            InputError: the directory is not a bundle, has another format version, is incomplete or altered, may not be
                read, or lists a file outside itself.
        """
        path = Path(path)
        if not is_readable_directory(path):
            advice = nearest_beside(path) or "make one with  rmlora-deploy export"
            raise InputError(f"Bundle not found: {path} is not a directory; {advice}.")
        if not is_readable_file(path / MANIFEST_FILE):
            raise InputError(_no_bundle(path))
        bundle = cls(path, read_manifest(path / MANIFEST_FILE), trust_remote_code)
        for name in bundle.files:
            bundle.file(name)
        bundle._check_listed()
        confine_files(path, [MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE])
        if check_files:
            bundle.check_files()
        return bundle

    def _check_listed(self) -> None:
        """Raise :class:`InputError` if a file of an adapter has no hash in the manifest."""
        for name, entry in self.adapters.items():
            for file in (entry.file, entry.reference):
                if file is not None and file not in entry.files:
                    raise InputError(
                        f"{self.path / MANIFEST_FILE} lists '{file}' of the adapter '{name}' without its hash: the manifest is "
                        "damaged, export again."
                    )

    def check_files(self) -> None:
        """Raise :class:`InputError` naming the first file that is missing or differs from the manifest, or is not listed."""
        for name, expected in self.files.items():
            file = self.file(name)
            if not is_readable_file(file):
                raise InputError(f"{file} is missing: the bundle is incomplete, copy it again or export again.")
            if sha256_file(file) != expected:
                raise InputError(f"{file} differs from the manifest (SHA-256): the bundle was altered or cut short.")
        for name in external_files(self.model_path):
            if name not in self.manifest.model.files:
                raise InputError(
                    f"{self.model_path} keeps its weights in {name}, which {MANIFEST_FILE} does not list: the bundle was "
                    "altered, export again."
                )

    @property
    def files(self) -> dict[str, str]:
        """File → SHA-256 of every file that the manifest lists."""
        listed = {**self.manifest.model.files, **self.manifest.files}
        for entry in self.adapters.values():
            # Files that an altered manifest names without a hash have none that is right.
            listed.update({name: "" for name in (entry.file, entry.reference) if name is not None})
            listed.update(entry.files)
        return listed

    def file(self, name: str) -> Path:
        """Return the path of a file by its name in the manifest.

        Raises:
            InputError: it lies outside the bundle, or is a link that leads out of it.
        """
        return confine(self.path, name, where=self.path / MANIFEST_FILE)

    @property
    def model_path(self) -> Path:
        """Path of the ONNX file."""
        return self.path / MODEL_FILE

    @property
    def mode(self) -> str:
        """``merged``: one adapter, merged into the weights; ``branches``: any number, chosen row by row."""
        return self.manifest.mode

    @property
    def adapters(self) -> dict[str, AdapterEntry]:
        """Name → entry of every adapter of a bundle with branches."""
        return dict(self.manifest.adapters)

    def adapter(self, name: str) -> AdapterEntry:
        """Return the entry of one adapter.

        Raises:
            InputError: the bundle has no adapter of that name.
        """
        if name not in self.adapters:
            known = f"it has {some_of(self.adapters)}" if self.adapters else "it has none"
            raise InputError(f"{self.path} has no adapter '{name}': {known}.")
        return self.adapters[name]

    @property
    def merged_adapter(self) -> AdapterSource:
        """The adapter merged into the weights.

        Raises:
            InputError: the manifest names none.
        """
        return self._recorded(self.manifest.adapter, "adapter")

    @property
    def base(self) -> BaseEntry:
        """The base that the bundle was made from.

        Raises:
            InputError: the manifest names none.
        """
        return self._recorded(self.manifest.base, "base")

    def _recorded(self, entry: _Entry | None, key: str) -> _Entry:
        if entry is None:
            raise InputError(f"{self.path / MANIFEST_FILE} lacks '{key}': the manifest is damaged, export again.")
        return entry

    @property
    def task(self) -> Task:
        """The task of the bundle."""
        return get_task(self.manifest.task)

    @property
    def pooling(self) -> Pooling | None:
        """How the graph pools a text's token vectors into one; None for tasks that do not pool."""
        return self.manifest.pooling.pooling if self.manifest.pooling is not None else None

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16``, ``int8`` or ``int4``."""
        return self.manifest.precision

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the scores."""
        return list(self.manifest.labels)

    @cached_property
    def base_config(self) -> Mapping[str, Any]:
        """The model's ``config.json``: with branches, the base's; empty if there is none."""
        file = self.path / "config.json"
        if not is_readable_file(file):
            return {}
        config: dict[str, Any] = read_json(file, what="Model configuration", finite=False)
        check_values(BaseConfig, config, where=f"Model configuration {file}", advice="export the bundle again")
        return config

    def scoring(self, adapter: str | None = None) -> Scoring | None:
        """Return what scores mean: with this adapter, or else without one; None for vectors.

        Raises:
            InputError: the bundle has no adapter of that name.
        """
        entry = self.adapter(adapter) if adapter is not None else self.manifest
        return self.task.outputs.scoring(entry.function_to_apply, entry.labels, entry.threshold)

    def input_form(self, adapter: str | None = None) -> InputForm | None:
        """Return what this adapter, or the merged one, was trained on; None without an adapter, or if it is not recorded.

        Raises:
            InputError: the bundle has no adapter of that name.
        """
        entry = self.adapter(adapter) if adapter is not None else self.manifest.adapter
        return self.task.inputs.form or (entry.input_form if entry is not None else None)

    def no_answer(self, adapter: str | None = None) -> bool | None:
        """Return True if this adapter, or the merged one, learned that a question may have no answer; None if it is not recorded.

        Raises:
            InputError: the bundle has no adapter of that name.
        """
        entry = self.adapter(adapter) if adapter is not None else self.manifest.adapter
        return entry.no_answer if entry is not None else None

    @property
    def input_forms(self) -> set[InputForm | None]:
        """What its adapters were trained on."""
        return {self.input_form(name) for name in self.adapters or [None]}

    def require_branches(self) -> None:
        """Raise :class:`ConfigError` if the bundle is merged."""
        if self.mode != "branches":
            raise ConfigError(
                f"{self.path} has its adapter merged: only a bundle exported with --mode branches takes adapters."
            )

    def session(self, provider: str = "cpu", *, threads: int | None = None) -> ort.InferenceSession:
        """Open the graph; errors as :func:`rmlora_deploy.runtime.providers.create_session`."""
        return create_session(self.model_path, provider, threads=threads)

    def lora_inputs(self) -> LoraInputs:
        """Return the LoRA inputs of a graph with branches; errors as those of :func:`read_lora_inputs`."""
        return read_lora_inputs(load_model(self.model_path).metadata_props, where=str(self.model_path))

    def adapter_session(self, provider: str = "cpu", **options: Any) -> AdapterSession:
        """Open a graph with branches and register all its adapters, each to be read when it is first used.

        Args:
            provider: execution provider.
            options: ``threads``, ``max_active_adapters``, ``rows`` and ``max_concurrent_runs`` of
                :class:`rmlora_deploy.runtime.AdapterSession`.

        Raises:
            ConfigError: the bundle is merged.
            InputError: the graph has no LoRA inputs.
            ProviderError: the provider is absent or does not start.
        """
        from rmlora_deploy.runtime import AdapterSession

        self.require_branches()
        session = AdapterSession(self.model_path, provider=provider, **options)
        for name, entry in self.adapters.items():
            session.register(name, self.loader(entry))
        return session

    def decoder_session(self, provider: str = "cpu", **options: Any) -> DecoderSession:
        """Open the graph of a language model and register all its adapters, each to be read when it is first used.

        Args:
            provider: execution provider.
            options: ``threads``, ``max_active_adapters`` and ``rank`` of
                :class:`rmlora_deploy.runtime.decoder.decoder_session.DecoderSession`; the rank is the median of the
                bundle's adapters unless it is given.

        Raises:
            InputError: the graph or its ``genai_config.json`` cannot be used.
            ConfigError: the provider is not ``cpu``.
        """
        from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout
        from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

        if self.adapters:
            options.setdefault("rank", median_high(entry.rank for entry in self.adapters.values()))
        session = DecoderSession(self.model_path, DecoderLayout.read(self.path), provider=provider, **options)
        for name, entry in self.adapters.items():
            session.register(name, self.loader(entry))
        return session

    def loader(self, entry: AdapterEntry) -> Callable[[], AdapterArrays]:
        """Return a function that reads the arrays of an adapter, and raises if they are not those of the manifest."""
        from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter

        file = self.file(entry.file)
        return partial(read_onnx_adapter, file, FileIdentity(file, entry.files.get(entry.file, "")))

    def preprocessor(self, adapter: str | None = None) -> Preprocessor:
        """Return the tokenizer or image processor, set up for the graph's inputs.

        Args:
            adapter: cut texts to this adapter's length; None cuts them to the bundle's.

        Raises:
            InputError: the bundle has no adapter of that name.
            CheckpointError: the bundle has no usable processor.
        """
        names = [item.name for item in self.manifest.model.inputs]
        length = (self.adapter(adapter) if adapter else self.manifest).max_length
        return Preprocessor.open(
            self.path, self.task, max_length=length, input_names=names, trust_remote_code=self.trust_remote_code
        )

    def reload(self) -> None:
        """Read the manifest again, which another process may have changed; errors as those of :meth:`open`."""
        self.manifest = Bundle.open(self.path, check_files=False).manifest

    def save_manifest(self) -> None:
        """Write the manifest, atomically."""
        write_json(self.path / MANIFEST_FILE, self.manifest.to_dict())


def _no_bundle(path: Path) -> str:
    """Return what to say of a directory without a manifest."""
    word = shlex.quote(str(path))
    if holds_adapter(path):
        return f"{path} is an adapter, not a bundle: export it first with  rmlora-deploy export BASE --adapter {word}."
    if holds_model(path):
        return f"{path} is a model, not a bundle: export it first with  rmlora-deploy export {word} --adapter ADAPTER."
    return f"{path} holds no {MANIFEST_FILE}: it is not a bundle made by  rmlora-deploy export."
