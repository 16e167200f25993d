"""RM-LoRA: regularized and masked low-rank adaptation (Mao et al., arXiv 2407.12074).

Training, with any transformers ``Trainer`` or a loop of your own (needs torch and peft):

======================== ========================================================================================
``RMLoRAConfig``         the settings of the method
``RMLoRACallback``       makes a ``Trainer`` train a PEFT LoRA model as RM-LoRA
``find_factors``         the trainable LoRA factors of a PEFT model, for hand-written loops
``regularize_gradients`` adds the orthogonality penalty's gradient; once per optimizer step
``mask_gradients``       zeroes the gradients of this step's masked directions; once per optimizer step
``finish_step``          lengthens the masked step and keeps the directions apart; after the optimizer's step
======================== ========================================================================================

Adapters on disk and in memory (numpy only):

======================== ========================================================================================
``load_package``         reads an adapter directory, ours or PEFT's
``save_package``         writes one that PEFT loads
``Adapter``              an adapter in memory: ``LoraModule`` by module path, and tensors saved in full
``LoraModule``           the update of one module, ``scale · B A``
``adapter_spectrum``     singular values and intrinsic dimension of all updates, as ``AdapterSpectrum``
``module_spectrum``      the same for one module, as ``Spectrum``
``RMLoRAError``          base class of every error raised on purpose, see :mod:`rmlora.errors`
======================== ========================================================================================

Every name is imported on first use, so ``import rmlora`` is fast and works without torch and transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmlora._version import __version__
from rmlora.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from rmlora.adapter import Adapter, LoraModule
    from rmlora.callback import RMLoRACallback
    from rmlora.config import RMLoRAConfig
    from rmlora.errors import RMLoRAError
    from rmlora.factors import find_factors
    from rmlora.package import load_package, save_package
    from rmlora.spectrum import AdapterSpectrum, Spectrum, adapter_spectrum, module_spectrum
    from rmlora.steps import finish_step, mask_gradients, regularize_gradients

__all__ = [
    "Adapter",
    "AdapterSpectrum",
    "LoraModule",
    "RMLoRACallback",
    "RMLoRAConfig",
    "RMLoRAError",
    "Spectrum",
    "__version__",
    "adapter_spectrum",
    "find_factors",
    "finish_step",
    "load_package",
    "mask_gradients",
    "module_spectrum",
    "regularize_gradients",
    "save_package",
]

_HOMES = {
    "Adapter": "rmlora.adapter",
    "AdapterSpectrum": "rmlora.spectrum",
    "LoraModule": "rmlora.adapter",
    "RMLoRACallback": "rmlora.callback",
    "RMLoRAConfig": "rmlora.config",
    "RMLoRAError": "rmlora.errors",
    "Spectrum": "rmlora.spectrum",
    "adapter_spectrum": "rmlora.spectrum",
    "find_factors": "rmlora.factors",
    "finish_step": "rmlora.steps",
    "load_package": "rmlora.package",
    "mask_gradients": "rmlora.steps",
    "module_spectrum": "rmlora.spectrum",
    "regularize_gradients": "rmlora.steps",
    "save_package": "rmlora.package",
}
"""Name → module that it is imported from on first use."""

__getattr__ = lazy_exports(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
