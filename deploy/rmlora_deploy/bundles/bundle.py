"""A bundle: the directory that leaves the toolkit, with everything a machine without torch needs to run it.

manifest.json        what it is, what it was made from, and what verification measured
model.onnx           the graph
model.onnx.data      its weights (absent for small models)
config.json, tokenizer.json, preprocessor_config.json …   the base's own files
reference.safetensors   inputs and PyTorch's outputs on them, to prove the bundle where torch is absent

and in mode ``branches``, where the graph is the base and the outputs are the base's,

adapters/<name>.onnx_adapter            what the graph takes for that adapter, in onnxruntime's own format
adapters/<name>.reference.safetensors   PyTorch's outputs with it, on the same inputs
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import ConfigError, InputError, some_of
from rmlora.pooling import Pooling
from rmlora.storage import read_json, sha256_file, write_json
from rmlora.tasks import get_task
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.providers import create_session

if TYPE_CHECKING:
    import onnxruntime as ort

    from rmlora_deploy.runtime import AdapterSession

__all__ = ["BUNDLE_FORMAT_VERSION", "MANIFEST_FILE", "MODEL_FILE", "REFERENCE_FILE", "Bundle"]

BUNDLE_FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.safetensors"


@dataclass
class Bundle:
    """A bundle on disk and its manifest.

    The manifest's keys: ``format_version``, ``created_by``, ``mode`` (``merged`` or ``branches``), ``task``,
    ``precision``, ``labels``, ``pooling`` (for embeddings), ``max_length``, ``exporter``, ``optimization`` (level, and why not a higher one),
    ``model`` (files with SHA-256, opset, required inputs, outputs, operators), ``files`` (SHA-256 of all others),
    ``base`` (source, fingerprint), ``tools`` (versions), ``seconds`` and ``verification`` (see
    :mod:`rmlora_deploy.verification`; None where it was left out). A merged bundle has ``adapter`` (source, SHA-256, settings)
    and ``layers`` (list of module path and the tensor in the graph that is its output, in the order of execution);
    one with branches has ``adapters`` (name → the same, with files, labels and length), see docs/formats.md.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str, *, check_files: bool = True) -> Bundle:
        """Read a bundle's manifest; with ``check_files`` every file it lists must have its SHA-256.

        Raises:
            InputError: not a bundle, of another format version, incomplete or altered.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"Bundle not found: {path} is not a directory; make one with  rmlora-deploy export.")
        if not (path / MANIFEST_FILE).is_file():
            raise InputError(f"{path} holds no {MANIFEST_FILE}: it is not a bundle made by  rmlora-deploy export.")
        manifest = read_json(path / MANIFEST_FILE, what="Bundle manifest")
        if not isinstance(manifest, dict) or manifest.get("format_version") != BUNDLE_FORMAT_VERSION:
            found = manifest.get("format_version") if isinstance(manifest, dict) else None
            raise InputError(
                f"{path / MANIFEST_FILE} has format version {found}, this program reads {BUNDLE_FORMAT_VERSION}: export again."
            )
        missing = [key for key in ("task", "precision", "labels", "model") if key not in manifest]
        if missing:
            raise InputError(f"{path / MANIFEST_FILE} lacks '{missing[0]}': the manifest is damaged, export again.")
        bundle = cls(path, manifest)
        if check_files:
            bundle.check_files()
        return bundle

    def check_files(self) -> None:
        """Raise :class:`InputError` naming the first file that is missing or differs from the manifest."""
        files = {**self.manifest["model"]["files"], **self.manifest.get("files", {})}
        for entry in self.adapters.values():
            files.update(entry["files"])
        for name, expected in files.items():
            file = self.path / name
            if not file.is_file():
                raise InputError(f"{file} is missing: the bundle is incomplete, copy it again or export again.")
            if sha256_file(file) != expected:
                raise InputError(f"{file} differs from the manifest (SHA-256): the bundle was altered or cut short.")

    @property
    def model_path(self) -> Path:
        """Path of the ONNX file."""
        return self.path / MODEL_FILE

    @property
    def mode(self) -> str:
        """``merged``: one adapter inside the weights; ``branches``: any number beside them."""
        return str(self.manifest.get("mode", "merged"))

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Name → entry of every adapter beside the weights."""
        return dict(self.manifest.get("adapters") or {})

    def adapter(self, name: str) -> dict[str, Any]:
        """Return the entry of one adapter.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.adapters:
            known = f"it has {some_of(self.adapters)}" if self.adapters else "it has none"
            raise InputError(f"{self.path} has no adapter '{name}': {known}.")
        return self.adapters[name]

    @property
    def task(self) -> str:
        """Task name, e.g. ``text-classification``."""
        return str(self.manifest["task"])

    @property
    def embeds(self) -> bool:
        """Whether it answers with vectors and not with scores for labels."""
        return get_task(self.task).answer == "vector"

    @property
    def pooling(self) -> Pooling | None:
        """How the graph makes one vector of a text's tokens; None where it answers with scores."""
        recorded = self.manifest.get("pooling")
        return Pooling(recorded["mode"], recorded["normalize"]) if recorded else None

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16``, ``int8`` or ``int4``."""
        return str(self.manifest["precision"])

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the logits."""
        return [str(label) for label in self.manifest.get("labels") or []]

    def session(self, provider: str = "cpu", *, threads: int | None = None) -> ort.InferenceSession:
        """Open the model; errors as :func:`rmlora_deploy.runtime.providers.create_session`."""
        return create_session(self.model_path, provider, threads=threads)

    def lora_inputs(self) -> LoraInputs:
        """Return what a graph with branches takes for its adapters; errors as :func:`rmlora_converters.graph.contract.lora_inputs.read_lora_inputs`."""
        return read_lora_inputs(load_model(self.model_path).metadata_props, where=str(self.model_path))

    def adapter_session(self, provider: str = "cpu", **options: Any) -> AdapterSession:
        """Open a graph with branches and register all its adapters; they are read when they are used.

        Args:
            provider: execution provider.
            options: ``threads``, ``bank``, ``rows`` and ``lanes`` of :class:`rmlora_deploy.runtime.AdapterSession`.

        Raises:
            ConfigError: the bundle is merged.
            InputError: the graph has no slots.
            ProviderError: the provider is absent or does not start.
        """
        from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
        from rmlora_deploy.runtime import AdapterSession

        if self.mode != "branches":
            raise ConfigError(f"{self.path} has its adapter merged: only bundles of --mode branches can switch.")
        session = AdapterSession(self.model_path, provider=provider, **options)
        for name, entry in self.adapters.items():
            session.register(name, partial(read_onnx_adapter, self.path / entry["file"]))
        return session

    def preprocessor(self, adapter: str | None = None) -> Preprocessor:
        """Return the tokenizer or image processor, set up for the graph's inputs.

        Args:
            adapter: cut texts as in this adapter's training; without, where the bundle says.

        Raises:
            InputError: the adapter is not known.
            CheckpointError: there is no usable processor.
        """
        names = [item["name"] for item in self.manifest["model"]["inputs"]]
        length = (self.adapter(adapter) if adapter else self.manifest).get("max_length")
        return Preprocessor.open(self.path, self.task, max_length=length, input_names=names)

    def reload(self) -> None:
        """Read the manifest again: another process may have changed it; errors as :meth:`open`."""
        self.manifest = Bundle.open(self.path, check_files=False).manifest

    def save_manifest(self) -> None:
        """Write the manifest back, atomically."""
        write_json(self.path / MANIFEST_FILE, self.manifest)
