"""Adapters as the current classes of transformers have them: their module names, and which weights are transposed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rmlora.adapter import Adapter, LoraModule
from rmlora.stored_weights import StoredWeights

__all__ = ["in_memory_names"]


def in_memory_names(adapter: Adapter, weights: StoredWeights) -> Adapter:
    """Return ``adapter`` with the names of transformers' current classes, if it has those of an older version.

    Adapters for models whose modules transformers 5 renamed (ViT, Swin, …) speak the names that are still on disk. Each module
    also gets the ``fan_in_fan_out`` of its own weight.
    """
    adapter = _oriented(adapter, weights)
    layout = weights.layout
    if layout is None:
        return adapter
    renamed = {parts[0].tensor: name for name, parts in layout.parts.items() if len(parts) == 1 and parts[0].is_whole}

    def current(parameter: str) -> str:
        if parameter in layout.shapes or parameter in layout.new_names.values():
            return parameter
        parts = weights.find(parameter)
        return renamed.get(parts[0].tensor, parameter) if len(parts) == 1 and parts[0].is_whole else parameter

    modules = {}
    for path, module in adapter.modules.items():
        new = current(module.parameter).removesuffix(f".{module.leaf}")
        modules[new] = module if new == path else replace(module, path=new)
    saved = {current(name): value for name, value in adapter.modules_to_save.items()}
    if modules.keys() == adapter.modules.keys() and saved.keys() == adapter.modules_to_save.keys():
        return adapter
    return replace(adapter, modules=modules, modules_to_save=saved, peft_config=_exact_config(adapter, modules))


def _oriented(adapter: Adapter, weights: StoredWeights) -> Adapter:
    turned = {
        path: replace(module, fan_in_fan_out=not module.fan_in_fan_out)
        for path, module in adapter.modules.items()
        if module.kind == "linear" and weights.is_transposed(module) != module.fan_in_fan_out
    }
    return replace(adapter, modules={**adapter.modules, **turned}) if turned else adapter


def _exact_config(adapter: Adapter, modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    """Return PEFT's configuration with modules, ranks and scales named one by one."""
    rslora = bool(adapter.peft_config.get("use_rslora"))
    alphas = {path: module.scale * (module.rank**0.5 if rslora else module.rank) for path, module in modules.items()}
    return {
        **adapter.peft_config,
        "target_modules": sorted(modules),
        "rank_pattern": {f"^{re.escape(path)}": module.rank for path, module in modules.items()},
        "alpha_pattern": {f"^{re.escape(path)}": alpha for path, alpha in alphas.items()},
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
