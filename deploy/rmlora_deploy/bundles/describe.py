"""The parts of a manifest: what the files of a bundle are, and what they were made from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rmlora._version import __version__
from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.fingerprint import base_fingerprint
from rmlora.package import TENSORS_FILE
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, MODEL_FILE
from rmlora_deploy.bundles.manifest import FORMAT_VERSION, AdapterSource, BaseEntry, ModelEntry, TensorEntry

__all__ = [
    "describe_adapter",
    "describe_base",
    "describe_files",
    "describe_model",
    "describe_tools",
    "operator_counts",
    "tool_versions",
]

_MODEL_FILES = (MODEL_FILE, f"{MODEL_FILE}.data")
_TOOLS = (
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-genai",
    "optimum",
    "optimum-onnx",
)
_BUILDS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-genai": ("onnxruntime-genai", "onnxruntime-genai-cuda"),
}
"""Package → the distributions that install it, one of them at a time."""


def describe_model(directory: Path) -> ModelEntry:
    """Return the manifest entry of the graph in ``directory``: files, size, operators, inputs and outputs."""
    graph = ir.load(directory / MODEL_FILE)
    files = [directory / name for name in _MODEL_FILES if (directory / name).is_file()]
    return ModelEntry(
        files={path.name: sha256_file(path) for path in files},
        bytes=sum(path.stat().st_size for path in files),
        opset=graph.opset_imports[""],
        operators=operator_counts(graph),
        inputs=[_signature(value) for value in graph.graph.inputs if value.name not in graph.graph.initializers],
        outputs=[_signature(value) for value in graph.graph.outputs],
    )


def describe_files(directory: Path) -> dict[str, str]:
    """Return file → SHA-256 of every file in ``directory`` except the graph's files and the manifest."""
    known = (*_MODEL_FILES, MANIFEST_FILE)
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: sha256_file(path) for name, path in files.items() if name not in known}


def describe_tools() -> dict[str, Any]:
    """Return format version, program version, and the version of every package that takes part in an export."""
    return {
        "format_version": FORMAT_VERSION,
        "created_by": f"rmlora-deploy {__version__}",
        "tools": tool_versions(),
    }


def tool_versions() -> dict[str, str | None]:
    """Return package → version of every package that takes part in an export; None for those not installed."""
    return {name: _version(*_BUILDS.get(name, (name,))) for name in _TOOLS}


def describe_base(base: str, revision: str | None, checkpoint: Checkpoint, modules: Iterable[str]) -> BaseEntry:
    """Return the manifest entry of the base: its name, and a fingerprint to recognize it by.

    Args:
        base: directory, ``.gguf`` file or hub name, as the user gave it.
        revision: of a hub base.
        checkpoint: the base on disk.
        modules: paths of the adapted modules, whose weights the fingerprint covers.
    """
    local = Path(base).exists()
    source = _directory_name(base) if local else base
    return BaseEntry(source=source, revision=revision, fingerprint=base_fingerprint(checkpoint, modules), hub=not local)


def describe_adapter(adapter: Adapter) -> AdapterSource:
    """Return the manifest entry of the adapter package at ``adapter.source``."""
    source = Path(adapter.source)
    return AdapterSource(
        source=_directory_name(source),
        sha256=sha256_file(source / TENSORS_FILE),
        modules=len(adapter.modules),
        parameters=adapter.parameters,
        rmlora=adapter.metadata.get("rmlora"),
        metrics=adapter.metadata.get("metrics"),
        **_asked(adapter),
    )


def _asked(adapter: Adapter) -> dict[str, Any]:
    """Return how the model is asked, and its answers are chosen, as far as it is recorded."""
    asked: dict[str, Any] = {}
    if adapter.input_form is not None:
        asked["input_form"] = adapter.input_form
    if adapter.no_answer is not None:
        asked["no_answer"] = adapter.no_answer
    if adapter.threshold is not None:
        asked["threshold"] = adapter.threshold
    if adapter.prompt_format is not None:
        asked |= {"prompt_format": adapter.prompt_format, "end_tokens": adapter.end_tokens}
    return asked


def _directory_name(path: Path | str) -> str:
    """Return the last part of a path as the user wrote it; links are not followed."""
    return Path(os.path.abspath(path)).name


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Return operator → number of nodes, the most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _signature(value: ir.Value) -> TensorEntry:
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    return TensorEntry(name=str(value.name), dtype=value.dtype.name.lower() if value.dtype else None, shape=shape)


def _version(*distributions: str) -> str | None:
    """Return the version of the first distribution that is installed."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
