"""What an adapter or a bundle is, as JSON-ready values (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.delta import stores_transposed
from deploy.bundle import MANIFEST_FILE, Bundle
from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, InputError
from rmlora.fingerprint import base_fingerprint
from rmlora.naming import find_tensor
from rmlora.package import CONFIG_FILE
from rmlora.spectrum import AdapterSpectrum, adapter_spectrum

__all__ = ["describe_adapter", "describe_bundle", "fit_to_base", "kind_of"]


def kind_of(path: Path) -> str:
    """Return ``adapter`` or ``bundle``.

    Raises:
        InputError: it is neither.
    """
    if (path / MANIFEST_FILE).is_file():
        return "bundle"
    if (path / CONFIG_FILE).is_file():
        return "adapter"
    if not path.exists():
        raise InputError(f"{path} does not exist: give an adapter directory or a bundle.")
    raise InputError(f"{path} is neither an adapter (no {CONFIG_FILE}) nor a bundle (no {MANIFEST_FILE}).")


def describe_adapter(adapter: Adapter) -> tuple[dict[str, Any], AdapterSpectrum]:
    """Return sizes, settings and spectrum of an adapter, and the spectrum itself for plotting."""
    spectrum = adapter_spectrum(adapter)
    modules = [
        {
            "module": path,
            "kind": module.kind,
            "rank": module.rank,
            "active_rank": module.active_rank,
            "scale": module.scale,
            "in": int(module.lora_A[0].size),
            "out": int(module.lora_B.shape[0]),
            **_measures(spectrum.modules[path]),
        }
        for path, module in adapter.modules.items()
    ]
    return {
        "kind": "adapter",
        "path": adapter.source,
        "task": adapter.task,
        "labels": adapter.labels,
        "base_model": adapter.metadata.get("base_model") or adapter.peft_config.get("base_model_name_or_path"),
        "base_fingerprint": adapter.fingerprint,
        "modules_adapted": len(modules),
        "parameters": adapter.parameters,
        "saved_tensors": {name: list(array.shape) for name, array in adapter.saved.items()},
        "settings": adapter.metadata.get("rmlora"),
        "metrics": adapter.metadata.get("metrics"),
        "spectrum": {
            "numerical_rank": spectrum.numerical_rank,
            "stable_rank": spectrum.stable_rank,
            "effective_rank": spectrum.effective_rank,
            "joint": _measures(spectrum.joint),
        },
        "modules": modules,
    }, spectrum


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return what the manifest says, with the size of every file."""
    sizes = {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir()) if path.is_file()}
    return {"kind": "bundle", "path": str(bundle.path), "sizes": sizes, **bundle.manifest}


def fit_to_base(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how an adapter fits a base: modules found, shapes, fingerprint.

    ``fits`` is False when a module is missing, has another shape, or the recorded fingerprint differs.
    """
    problems = []
    for path, module in adapter.modules.items():
        name = find_tensor(f"{path}.weight", checkpoint.tensors.keys())
        if name is None:
            problems.append({"module": path, "problem": "not in the base"})
            continue
        try:
            stores_transposed(module, checkpoint.tensors[name].shape)
        except AdapterError:
            shape = list(checkpoint.tensors[name].shape)
            problems.append({"module": path, "problem": f"the base's weight has shape {shape}"})
    actual = base_fingerprint(checkpoint, adapter.modules) if not problems else None
    known = adapter.fingerprint
    same = None if known is None or actual is None else known == actual
    return {
        "base": str(checkpoint.path),
        "modules_found": len(adapter.modules) - len(problems),
        "problems": problems,
        "fingerprint": actual,
        "fingerprint_matches": same,
        "fits": not problems and same is not False,
    }


def _measures(spectrum: Any) -> dict[str, Any]:
    return {
        "largest_singular_value": float(spectrum.singular_values[0]) if spectrum.singular_values.size else 0.0,
        "numerical_rank": spectrum.numerical_rank,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
    }
