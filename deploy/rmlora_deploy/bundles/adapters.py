"""The adapters of a bundle with branches: adding one, taking one away, recording what was verified (no torch).

The manifest is written last when an adapter comes and first when one goes, so whatever it lists is whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.adapter import Adapter
from rmlora.adapter_task import adapter_labels, drop_unused_modules, task_of
from rmlora.errors import AdapterError, ConfigError
from rmlora.package import load_package
from rmlora.storage import atomic_file, locked, sha256_file
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.files.onnx_adapter import write_onnx_adapter
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.choose_pooling import check_pooling
from rmlora_deploy.bundles.describe import describe_adapter
from rmlora_deploy.bundles.processor import trained_length
from rmlora_deploy.bundles.reference import load_reference, save_reference

__all__ = ["add_adapter", "check_name", "record_verification", "remove_adapter", "store_reference", "write_entry"]

ADAPTERS = "adapters"
_NOTHING = 1e-6
"""Relative difference from the base's answers that rounding alone can make."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> None:
    """Raise :class:`ConfigError` unless ``name`` can be an adapter's, which is also a file's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name an adapter: use up to 100 letters, digits, dots, dashes and underscores, the first "
            "a letter or digit."
        )


def write_entry(
    directory: Path,
    name: str,
    adapter: Adapter,
    *,
    task: str,
    length: int | None,
    allow_base_mismatch: bool,
    pooling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what the graph in ``directory`` takes for ``adapter`` and return its entry for the manifest.

    Args:
        directory: of the bundle.
        name: the adapter's.
        adapter: what to write.
        task: of the bundle.
        length: tokens that texts are cut to where the adapter does not tell.
        allow_base_mismatch: write it although it was made for another base.
        pooling: the manifest's part about it, for embeddings.

    Raises:
        BaseMismatchError: the adapter was made for another base.
        AdapterError: the graph has no slot for a module or head, or the task is another one.
    """
    check_name(name)
    if adapter.task not in (None, task):
        raise AdapterError(f"{adapter.source} is for {adapter.task}, the bundle for {task}: give it one of its own.")
    known = task_of(adapter, task)
    labels, adapter = adapter_labels(adapter, known), drop_unused_modules(adapter, known)
    check_pooling(adapter, pooling)
    model = load_model(directory / MODEL_FILE)
    lora_inputs = read_lora_inputs(model.metadata_props, where=str(directory / MODEL_FILE))
    values = {value.name: value for value in model.graph.inputs}
    dtypes = {slot: values[slot].dtype.numpy() for slot in lora_inputs.names}  # type: ignore[union-attr]
    arrays = adapter_arrays(adapter, lora_inputs, dtypes, allow_base_mismatch=allow_base_mismatch)
    file = directory / ADAPTERS / f"{name}.onnx_adapter"
    file.parent.mkdir(exist_ok=True)
    write_onnx_adapter(file, arrays)
    relative = f"{ADAPTERS}/{file.name}"
    return {
        **describe_adapter(adapter),
        "file": relative,
        "files": {relative: sha256_file(file)},
        "bytes": file.stat().st_size,
        "rank": max(module.active_rank for module in adapter.modules.values()),
        "labels": labels,
        "max_length": trained_length(adapter) or length,
    }


def add_adapter(bundle: Bundle, name: str, path: Path, *, allow_base_mismatch: bool = False) -> dict[str, Any]:
    """Add the adapter package at ``path`` to ``bundle`` and return its entry.

    The graph answers the bundle's reference inputs with it before it is listed; whether the answers are PyTorch's is
    for ``rmlora-deploy verify`` to say, where torch is.

    Raises:
        ConfigError: the bundle is merged, or the name is taken or cannot be one.
        AdapterError: the adapter does not fit the graph, or changes nothing in its answers.
    """
    _require_branches(bundle)
    check_name(name)
    adapter = load_package(path)
    with locked(bundle.path):
        bundle.reload()
        if name in bundle.adapters:
            raise ConfigError(
                f"{bundle.path} has an adapter '{name}' already: choose another name, or take that one away first "
                "(rmlora-deploy adapter remove)."
            )
        entry = write_entry(
            bundle.path, name, adapter, task=bundle.task, length=bundle.manifest.get("max_length"),
            allow_base_mismatch=allow_base_mismatch, pooling=bundle.manifest.get("pooling"),
        )  # fmt: skip
        candidate = Bundle(bundle.path, {**bundle.manifest, "adapters": {**bundle.adapters, name: entry}})
        try:
            _try_out(candidate, name)
        except BaseException:
            (bundle.path / entry["file"]).unlink(missing_ok=True)
            raise
        bundle.manifest["adapters"] = candidate.adapters
        bundle.save_manifest()
    return entry


def remove_adapter(bundle: Bundle, name: str) -> None:
    """Take the adapter ``name`` out of ``bundle``.

    Raises:
        ConfigError: the bundle is merged.
        InputError: there is none of that name.
    """
    _require_branches(bundle)
    with locked(bundle.path):
        bundle.reload()
        entry = bundle.adapter(name)
        bundle.manifest["adapters"] = {key: value for key, value in bundle.adapters.items() if key != name}
        report = bundle.manifest.get("verification")
        if report:
            report["adapters"].pop(name, None)
        bundle.save_manifest()
        for file in entry["files"]:
            (bundle.path / file).unlink(missing_ok=True)


def record_verification(
    bundle: Bundle, report: dict[str, Any], expected: Mapping[str, Sequence[np.ndarray]] | None = None
) -> None:
    """Write a report into the manifest, and PyTorch's outputs beside it, for the adapters that are still what they were.

    Others may have come or gone since ``bundle`` was opened: its manifest is read again.
    """
    verified = bundle.adapters
    with locked(bundle.path):
        bundle.reload()
        same = {
            name for name, entry in bundle.adapters.items() if entry["sha256"] == verified.get(name, {}).get("sha256")
        }
        if "adapters" in report:
            report = {**report, "adapters": {name: row for name, row in report["adapters"].items() if name in same}}
        store_reference(bundle, {name: logits for name, logits in (expected or {}).items() if name in same})
        bundle.manifest["verification"] = report
        bundle.save_manifest()


def store_reference(bundle: Bundle, expected: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write PyTorch's outputs on the reference inputs for every adapter in ``expected``, and list them in the manifest."""
    adapters = bundle.adapters
    for name, logits in expected.items():
        relative = f"{ADAPTERS}/{name}.reference.safetensors"
        if relative in adapters[name]["files"]:
            continue
        with atomic_file(bundle.path / relative) as temporary:
            save_reference(temporary, [{}] * len(logits), logits)
        files = {**adapters[name]["files"], relative: sha256_file(bundle.path / relative)}
        adapters[name] = {**adapters[name], "files": files, "reference": relative}
    if expected:
        bundle.manifest["adapters"] = adapters


def _try_out(bundle: Bundle, name: str) -> None:
    """Run the first reference case with the adapter and hold it against the base's answer."""
    batches, base = load_reference(bundle.path / REFERENCE_FILE)
    got = np.stack(bundle.adapter_session().run(batches[0], name))
    if not np.isfinite(got).all():
        raise AdapterError(
            f"With the adapter '{name}' the graph gives NaN or infinity: the adapter is broken, or too large for "
            f"{bundle.precision}."
        )
    if got.shape == base[0].shape and np.abs(got - base[0]).max() <= _NOTHING * np.abs(base[0]).max():
        raise AdapterError(
            f"The adapter '{name}' changes nothing in the answers: its update and its head are the base's."
        )


def _require_branches(bundle: Bundle) -> None:
    if bundle.mode != "branches":
        raise ConfigError(
            f"{bundle.path} has its adapter merged: export one with --mode branches, to which adapters can be added."
        )
