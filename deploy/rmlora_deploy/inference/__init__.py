"""Asking a bundle: labels for inputs, or vectors for texts."""

from pathlib import Path
from typing import Any

from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.classifier import AdapterClassifier, Classifier, Prediction
from rmlora_deploy.inference.embedder import Embedder

__all__ = ["Classifier", "Embedder", "Prediction", "open_bundle"]


def open_bundle(
    path: Path | str, *, provider: str = "cpu", **options: Any
) -> AdapterClassifier | Classifier | Embedder:
    """Open a bundle of any kind; errors as those of the classes."""
    bundle = Bundle.open(path, check_files=False)
    if bundle.task.outputs.pools:
        return Embedder.open(path, provider=provider, **options)
    if bundle.mode == "branches":
        return AdapterClassifier.open(path, provider=provider, **options)
    return Classifier.open(path, provider=provider, **options)
