"""The adapters of a bundle with branches: add one, remove one, record what verification found (no torch).

Adding writes the manifest last and removing writes it first, so every adapter it lists is complete. What a killed command
leaves is removed by the next one (:mod:`rmlora_deploy.bundles.changes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rmlora.adapter import Adapter
from rmlora.errors import ConfigError
from rmlora.package import load_package
from rmlora.storage import atomic_file, sha256_file
from rmlora_converters.graph.files.onnx_adapter import write_onnx_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.changes import announce, changing
from rmlora_deploy.bundles.convert_adapter import TryOut, convert_adapter
from rmlora_deploy.bundles.describe import describe_adapter
from rmlora_deploy.bundles.manifest import ADAPTER_NAME, AdapterEntry
from rmlora_deploy.bundles.reference import save_reference
from rmlora_deploy.bundles.report import VerificationReport, keep_reports
from rmlora_deploy.bundles.sources import record_adapter_directory

__all__ = ["add_adapter", "check_name", "record_verification", "remove_adapter", "store_reference", "write_adapter"]

ADAPTERS = "adapters"


def check_name(name: str) -> None:
    """Raise :class:`ConfigError` unless ``name`` can name an adapter and its files."""
    if not ADAPTER_NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name an adapter: use up to 100 letters, digits, dots, dashes and underscores, starting "
            "with a letter or digit."
        )


def write_adapter(
    bundle: Bundle,
    try_out: TryOut,
    name: str,
    adapter: Adapter,
    *,
    allow_base_mismatch: bool,
    label_names: Sequence[str] | None = None,
) -> AdapterEntry:
    """Convert ``adapter``, write its file into ``bundle`` and return its entry for the manifest.

    Args:
        bundle: a bundle with branches.
        try_out: with the bundle's graph open; one serves any number of adapters.
        name: what the adapter is called in the bundle.
        adapter: as it was read.
        allow_base_mismatch: accept an adapter that was made for another base.
        label_names: names of its labels; None takes those that the adapter or the base records.

    Raises:
        AdapterError: see :func:`convert_adapter`.
    """
    session, manifest = try_out.session, bundle.manifest
    converted = convert_adapter(
        adapter, session.lora_inputs, session.input_types, name=name, task=bundle.task, pooling=manifest.pooling,
        max_length=manifest.max_length, try_out=try_out, base_config=bundle.base_config, label_names=label_names,
        allow_base_mismatch=allow_base_mismatch,
    )  # fmt: skip
    relative = _adapter_file(name)
    file = bundle.file(relative)
    file.parent.mkdir(exist_ok=True)
    write_onnx_adapter(file, converted.arrays)
    return AdapterEntry(
        **describe_adapter(converted.adapter).to_dict(),  # without what is not recorded
        file=relative,
        files={relative: sha256_file(file)},
        bytes=file.stat().st_size,
        rank=converted.rank,
        labels=converted.labels,
        function_to_apply=converted.function_to_apply,
        max_length=converted.max_length,
    )


def add_adapter(
    bundle: Bundle,
    name: str,
    path: Path,
    *,
    allow_base_mismatch: bool = False,
    label_names: Sequence[str] | None = None,
) -> AdapterEntry:
    """Add the adapter package at ``path`` to ``bundle`` and return its entry; other arguments as :func:`write_adapter`.

    The graph is run once with the adapter before the manifest lists it. ``rmlora-deploy verify`` compares its outputs with
    PyTorch, where torch is installed.

    Raises:
        ConfigError: the bundle is merged, or the name is taken or not allowed.
        AdapterError: see :func:`convert_adapter`.
    """
    bundle.require_branches()
    check_name(name)
    adapter = load_package(path)
    with changing(bundle):
        if name in bundle.adapters:
            raise ConfigError(
                f"{bundle.path} already has an adapter '{name}': choose another name, or remove that one first "
                "(rmlora-deploy adapter remove)."
            )
        announce(bundle, [_adapter_file(name)])
        entry = write_adapter(
            bundle, TryOut.of(bundle), name, adapter, allow_base_mismatch=allow_base_mismatch, label_names=label_names
        )
        bundle.manifest.adapters = {**bundle.adapters, name: entry}
        bundle.save_manifest()
        record_adapter_directory(bundle.manifest, entry, path)
    return entry


def remove_adapter(bundle: Bundle, name: str) -> None:
    """Remove the adapter ``name`` and its files from ``bundle``.

    Raises:
        ConfigError: the bundle is merged.
        InputError: it has no adapter of that name.
    """
    bundle.require_branches()
    with changing(bundle):
        entry = bundle.adapter(name)
        announce(bundle, entry.files)
        bundle.manifest.adapters = {key: value for key, value in bundle.adapters.items() if key != name}
        bundle.manifest.verifications = [_only(report, bundle.adapters) for report in bundle.manifest.verifications]
        bundle.save_manifest()


def record_verification(
    bundle: Bundle, report: VerificationReport, expected: Mapping[str, Sequence[np.ndarray]] | None = None
) -> None:
    """Add a report to those in the manifest, and write PyTorch's outputs into the bundle.

    The manifest is read again first: adapters that were added, removed or replaced since ``bundle`` was opened are left
    out of what is written.
    """
    verified = bundle.adapters
    with changing(bundle):
        same = {
            name
            for name, entry in bundle.adapters.items()
            if name in verified and entry.sha256 == verified[name].sha256
        }
        stored = {name: outputs for name, outputs in (expected or {}).items() if name in same}
        if stored:
            announce(bundle, map(_reference_file, stored))
            store_reference(bundle, stored)
        bundle.manifest.verifications = keep_reports([_only(report, same), *bundle.manifest.verifications])
        bundle.save_manifest()


def store_reference(bundle: Bundle, expected: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write PyTorch's outputs on the reference inputs, by adapter, and list the files in the manifest."""
    adapters = bundle.adapters
    for name, outputs in expected.items():
        relative = _reference_file(name)
        if relative in adapters[name].files:
            continue
        file = bundle.file(relative)
        with atomic_file(file) as temporary:
            save_reference(temporary, [{}] * len(outputs), outputs)
        files = {**adapters[name].files, relative: sha256_file(file)}
        adapters[name] = adapters[name].model_copy(update={"files": files, "reference": relative})
    if expected:
        bundle.manifest.adapters = adapters


def _adapter_file(name: str) -> str:
    return f"{ADAPTERS}/{name}.onnx_adapter"


def _reference_file(name: str) -> str:
    return f"{ADAPTERS}/{name}.reference.safetensors"


def _only(report: VerificationReport, names: Mapping[str, object] | set[str]) -> VerificationReport:
    """Return ``report`` with the adapters in ``names`` only."""
    if report.adapters is None:
        return report
    kept = {name: row for name, row in report.adapters.items() if name in names}
    return report.model_copy(update={"adapters": kept})
