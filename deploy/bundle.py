"""A bundle: the directory that leaves the toolkit, with everything a machine without torch needs to run it.

manifest.json        what it is, what it was made from, and what verification measured
model.onnx           the graph
model.onnx.data      its weights (absent for small models)
config.json, tokenizer.json, preprocessor_config.json …   the base's own files
reference.safetensors   inputs and PyTorch's outputs on them, to prove the bundle where torch is absent
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.preprocess import Preprocessor
from deploy.providers import create_session
from rmlora.errors import InputError
from rmlora.storage import read_json, sha256_file, write_json

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BUNDLE_FORMAT_VERSION", "MANIFEST_FILE", "MODEL_FILE", "REFERENCE_FILE", "Bundle"]

BUNDLE_FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.safetensors"


@dataclass
class Bundle:
    """A bundle on disk and its manifest.

    The manifest's keys: ``format_version``, ``created_by``, ``mode`` (``merged``), ``task``, ``precision``,
    ``labels``, ``max_length``, ``exporter``, ``optimisation`` (level, and why not a higher one), ``model`` (files
    with SHA-256, opset, inputs, outputs, operators), ``files`` (SHA-256 of all others), ``base`` and ``adapter``
    (source, fingerprint or SHA-256, settings), ``tools`` (versions), ``seconds``, ``layers`` (list of module path
    and the tensor in the graph that is its output, in the order of execution) and ``verification`` (see
    :mod:`deploy.verify.run`; None where it was left out).
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
        for name, expected in {**self.manifest["model"]["files"], **self.manifest.get("files", {})}.items():
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
    def task(self) -> str:
        """Task name, e.g. ``text-classification``."""
        return str(self.manifest["task"])

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""
        return str(self.manifest["precision"])

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the logits."""
        return [str(label) for label in self.manifest.get("labels") or []]

    def session(self, provider: str = "cpu", *, threads: int | None = None) -> ort.InferenceSession:
        """Open the model; errors as :func:`deploy.providers.create_session`."""
        return create_session(self.model_path, provider, threads=threads)

    def preprocessor(self) -> Preprocessor:
        """Return the tokenizer or image processor, set up for the graph's inputs; errors as :meth:`Preprocessor.open`."""
        names = [item["name"] for item in self.manifest["model"]["inputs"]]
        return Preprocessor.open(self.path, self.task, max_length=self.manifest.get("max_length"), input_names=names)

    def save_manifest(self) -> None:
        """Write the manifest back, atomically."""
        write_json(self.path / MANIFEST_FILE, self.manifest)
