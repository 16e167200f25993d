"""RM-LoRA: regularized and masked low-rank adaptation (Mao et al., arXiv 2407.12074).

Training, with any transformers ``Trainer`` or a loop of your own (needs torch and peft):

======================== ========================================================================================
``RMLoRAConfig``         the settings of the method
``RMLoRACallback``       makes a ``Trainer`` train a PEFT LoRA model as RM-LoRA
``find_factors``         the trainable LoRA factors of a PEFT model, for hand-written loops
``regularize_gradients`` adds the orthogonality penalty's gradient; once per optimizer step
``mask_gradients``       zeroes the gradients of this step's masked directions; once per optimizer step
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

Names that need torch or transformers are imported on first use, so ``import rmlora`` works without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmlora._version import __version__
from rmlora.adapter import Adapter, LoraModule
from rmlora.config import RMLoRAConfig
from rmlora.errors import RMLoRAError
from rmlora.lazy_exports import lazy_exports
from rmlora.package import load_package, save_package
from rmlora.spectrum import AdapterSpectrum, Spectrum, adapter_spectrum, module_spectrum

if TYPE_CHECKING:
    from rmlora.callback import RMLoRACallback
    from rmlora.factors import find_factors
    from rmlora.steps import mask_gradients, regularize_gradients

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
    "load_package",
    "mask_gradients",
    "module_spectrum",
    "regularize_gradients",
    "save_package",
]

_LAZY = {
    "RMLoRACallback": "rmlora.callback",
    "find_factors": "rmlora.factors",
    "mask_gradients": "rmlora.steps",
    "regularize_gradients": "rmlora.steps",
}

__getattr__ = lazy_exports(__name__, _LAZY)
