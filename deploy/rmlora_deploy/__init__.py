"""Train low-rank adapters, export them to ONNX bundles, and verify, load and serve the bundles.

The functions to start with::

    from rmlora_deploy import train, merge, export, verify, load

Everything is imported on first use, so ``import rmlora_deploy`` is fast and works without torch and onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmlora._version import __version__
from rmlora.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from rmlora_deploy.api import export, load, merge, train, verify
    from rmlora_deploy.bundles.bundle import Bundle
    from rmlora_deploy.inference import (
        Answerer,
        Classifier,
        Embedder,
        EntitySpan,
        FoundAnswer,
        Prediction,
        Tagger,
        Tagging,
    )
    from rmlora_deploy.runtime import AdapterSession

__all__ = [
    "AdapterSession",
    "Answerer",
    "Bundle",
    "Classifier",
    "Embedder",
    "EntitySpan",
    "FoundAnswer",
    "Prediction",
    "Tagger",
    "Tagging",
    "__version__",
    "export",
    "load",
    "merge",
    "train",
    "verify",
]

_HOMES = {
    "AdapterSession": "rmlora_deploy.runtime",
    "Answerer": "rmlora_deploy.inference",
    "Bundle": "rmlora_deploy.bundles.bundle",
    "Classifier": "rmlora_deploy.inference",
    "Embedder": "rmlora_deploy.inference",
    "EntitySpan": "rmlora_deploy.inference",
    "FoundAnswer": "rmlora_deploy.inference",
    "Prediction": "rmlora_deploy.inference",
    "Tagger": "rmlora_deploy.inference",
    "Tagging": "rmlora_deploy.inference",
    "export": "rmlora_deploy.api",
    "load": "rmlora_deploy.api",
    "merge": "rmlora_deploy.api",
    "train": "rmlora_deploy.api",
    "verify": "rmlora_deploy.api",
}
"""Name → module that it is imported from on first use."""

__getattr__ = lazy_exports(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
