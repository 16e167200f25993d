"""Spectra of the adapters of a bundle with branches, from the arrays that the bundle holds."""

from __future__ import annotations

import numpy as np

from rmlora.adapter import LoraModule
from rmlora.spectrum import AdapterSpectrum, module_spectrum, spectrum_of
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["bundle_spectra"]


def bundle_spectra(bundle: Bundle) -> dict[str, AdapterSpectrum]:
    """Return adapter → its spectrum; empty for a merged bundle, whose updates are inside the weights.

    Raises:
        InputError: the file of an adapter is damaged.
    """
    if not bundle.adapters:
        return {}
    inputs = bundle.lora_inputs()
    return {name: _spectrum(bundle, name, inputs) for name in bundle.adapters}


def _spectrum(bundle: Bundle, name: str, inputs: LoraInputs) -> AdapterSpectrum:
    arrays = bundle.loader(bundle.adapter(name))()
    modules = {}
    for branch in inputs.modules:
        if branch.lora_A not in arrays or not arrays[branch.lora_A].shape[-1]:
            continue
        first, second = (np.asarray(arrays[key][0], np.float32) for key in (branch.lora_A, branch.lora_B))
        modules[branch.module] = module_spectrum(LoraModule(branch.module, branch.kind, first.T, second.T, 1.0))
    return AdapterSpectrum(modules, spectrum_of(np.concatenate([item.singular_values for item in modules.values()])))
