"""Train low-rank adapters, export them to ONNX bundles, and verify, load and serve the bundles.

The functions to start with::

    from rmlora_deploy import train, merge, export, verify, load

Everything is imported on first use, so ``import rmlora_deploy`` is fast and works without torch and onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmlora._version import __version__

if TYPE_CHECKING:
    from rmlora_deploy.api import export, load, merge, train, verify
    from rmlora_deploy.bundles.bundle import Bundle
    from rmlora_deploy.inference import Classifier, Embedder, Prediction
    from rmlora_deploy.runtime import AdapterSession

__all__ = [
    "AdapterSession",
    "Bundle",
    "Classifier",
    "Embedder",
    "Prediction",
    "__version__",
    "export",
    "load",
    "merge",
    "train",
    "verify",
]

_HOMES = {
    "AdapterSession": "rmlora_deploy.runtime",
    "Bundle": "rmlora_deploy.bundles.bundle",
    "Classifier": "rmlora_deploy.inference",
    "Embedder": "rmlora_deploy.inference",
    "Prediction": "rmlora_deploy.inference",
    "export": "rmlora_deploy.api",
    "load": "rmlora_deploy.api",
    "merge": "rmlora_deploy.api",
    "train": "rmlora_deploy.api",
    "verify": "rmlora_deploy.api",
}
"""Name → module that it is imported from on first use."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rmlora_deploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
