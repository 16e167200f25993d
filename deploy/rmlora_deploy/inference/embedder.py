"""Embedding texts with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime import AdapterChoice
from rmlora_deploy.runtime.adapters.adapter_ref import resolve_choices
from rmlora_deploy.runtime.outputs import graph_logits

__all__ = ["Embedder", "cosines"]

Vectors = npt.NDArray[np.float32]


class Embedder:
    """A bundle for embeddings opened on one execution provider; with branches every text may be for another adapter.

    >>> vectors = Embedder.open("faq-bundle").embed(["How do I pay ?", "Where is my order ?"])  # doctest: +SKIP
    >>> vectors.shape  # doctest: +SKIP
    (2, 384)
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu", **options: Any) -> None:
        self.bundle = bundle
        self._preprocessor: Preprocessor = bundle.preprocessor()
        self._switching = bundle.mode == "branches"
        if self._switching:
            self.session = bundle.adapter_session(provider, **options)
        else:
            self._run = graph_logits(bundle.session(provider, **options))

    @classmethod
    def open(cls, path: Path | str, *, provider: str = "cpu", **options: Any) -> Embedder:
        """Open a bundle.

        Args:
            path: bundle directory.
            provider: execution provider.
            options: ``threads``; with branches also ``bank``, ``rows`` and ``lanes`` of
                :class:`rmlora_deploy.runtime.AdapterSession`.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: the bundle classifies.
            ProviderError: the provider is not available.
        """
        bundle = Bundle.open(path)
        if not bundle.task.outputs.pools:
            raise ConfigError(f"{path} is for {bundle.task.name}: open it with Classifier or AdapterClassifier.")
        return cls(bundle, provider, **options)

    def embed(
        self, texts: Sequence[str], adapters: AdapterChoice | Sequence[AdapterChoice] = None, *, batch_size: int = 32
    ) -> Vectors:
        """Return ``[texts, width]`` float32, in the order of ``texts``.

        Args:
            texts: what to embed.
            adapters: with branches, one choice for all texts or one for each; None is the base.
            batch_size: rows run at once.

        Raises:
            InputError: a text or an adapter cannot be used, or the graph gives no usable numbers.
            ConfigError: the choices do not fit the texts, or the bundle is merged and there is nothing to choose.
        """
        choices = resolve_choices(adapters, len(texts))
        if not self._switching and any(choices):
            raise ConfigError(f"{self.bundle.path} has its adapter merged: there is none to choose.")
        entries = [self.bundle.adapter(choice.name) if choice else self.bundle.manifest for choice in choices]
        found: list[npt.NDArray[Any]] = []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            arrays = self._preprocessor(texts[part], lengths=[entry.max_length for entry in entries[part]])
            if self._switching:
                chosen = [{choice.name: choice.strength} if choice else None for choice in choices[part]]
                found += self.session.run(arrays, chosen)
            else:
                found += list(self._run(arrays))
        vectors = np.stack(found).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise InputError(
                f"The graph of {self.bundle.path} gives NaN or infinity for these texts: its precision "
                f"({self.bundle.precision}) does not suffice, export it in fp32."
            )
        return vectors


def cosines(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return ``[rows, rows]``: the cosine of every two of ``vectors [rows, width]``."""
    wide = vectors.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)
