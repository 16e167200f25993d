"""Figures of an adapter: sizes, settings, and the spectrum of every update."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rmlora.adapter import Adapter, LoraModule
from rmlora.spectrum import AdapterSpectrum, Spectrum

__all__ = ["describe_adapter", "describe_ranks"]


def describe_adapter(adapter: Adapter, spectrum: AdapterSpectrum) -> dict[str, Any]:
    """Return JSON-ready figures of ``adapter``; sizes in bytes, parameters in elements."""
    metadata, rslora = adapter.metadata, bool(adapter.peft_config.get("use_rslora"))
    files = sorted(path for path in Path(adapter.source).iterdir() if path.is_file())
    return {
        "kind": "adapter",
        "source": adapter.source,
        "task": adapter.task,
        "labels": adapter.labels,
        "problem_type": adapter.problem_type,
        "threshold": adapter.threshold,
        "target_range": metadata.get("target_range"),
        "input_form": adapter.input_form,
        "architecture": metadata.get("architecture"),
        "base": {
            "model": metadata.get("base_model") or adapter.peft_config.get("base_model_name_or_path"),
            "fingerprint": adapter.fingerprint,
        },
        "files": {path.name: path.stat().st_size for path in files},
        "bytes": sum(path.stat().st_size for path in files),
        "parameters": {
            "factors": adapter.parameters,
            "modules_to_save": sum(tensor.size for tensor in adapter.modules_to_save.values()),
        },
        "modules_to_save": {name: list(tensor.shape) for name, tensor in adapter.modules_to_save.items()},
        "settings": metadata.get("rmlora"),
        "metrics": metadata.get("metrics"),
        "spectrum": {**describe_ranks(spectrum), "joint": describe_ranks(spectrum.joint)},
        "modules": [
            _describe_module(module, spectrum.modules[path], rslora=rslora) for path, module in adapter.modules.items()
        ],
    }


def _describe_module(module: LoraModule, spectrum: Spectrum, *, rslora: bool) -> dict[str, Any]:
    return {
        "module": module.path,
        "kind": module.kind,
        "in": math.prod(module.lora_A.shape[1:]),
        "out": module.lora_B.shape[0],
        "rank": module.rank,
        "active_rank": module.active_rank,
        "alpha": round(module.scale * (math.sqrt(module.rank) if rslora else module.rank), 6),
        "scale": module.scale,
        "parameters": module.lora_A.size + module.lora_B.size,
        "dtype": str(module.lora_A.dtype),
        **describe_ranks(spectrum),
        "singular_values": [float(value) for value in spectrum.singular_values],
    }


def describe_ranks(spectrum: Spectrum | AdapterSpectrum) -> dict[str, float]:
    """Return the three measures of rank, of one update or their means over an adapter's."""
    return {
        "numerical_rank": spectrum.numerical_rank,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
    }
