"""Classifying with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime import AdapterChoice, AdapterSession
from rmlora_deploy.runtime.adapters.adapter_ref import resolve_choices

__all__ = ["AdapterClassifier", "Classifier", "Prediction", "to_prediction"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one input."""

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    """Every label with its probability, likeliest first."""


class Classifier:
    """A merged bundle opened on one execution provider.

    >>> Classifier.open("spam-bundle").predict(["You won! Call now"])[0].label  # doctest: +SKIP
    'spam'
    """

    def __init__(self, bundle: Bundle, session: Any, preprocessor: Preprocessor) -> None:
        self.bundle = bundle
        self._session = session
        self._preprocessor = preprocessor

    @classmethod
    def open(cls, path: Path | str, *, provider: str = "cpu", threads: int | None = None) -> Classifier:
        """Open a bundle.

        Args:
            path: bundle directory.
            provider: execution provider.
            threads: intra-op threads; None lets ONNX Runtime choose.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: the bundle has branches, or embeds.
            ProviderError: the provider is not available.
        """
        bundle = Bundle.open(path)
        if bundle.mode != "merged":
            raise ConfigError(f"{path} has adapters beside its weights: open it with AdapterClassifier.")
        _refuse_vectors(bundle)
        return cls(bundle, bundle.session(provider, threads=threads), bundle.preprocessor())

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> list[Prediction]:
        """Return an answer for every text or image, in order.

        Args:
            inputs: texts; or image paths, encoded images or PIL images.
            batch_size: rows run at once.

        Raises:
            InputError: an input is empty or cannot be read, or the graph gives no usable scores for it.
        """
        answers: list[Prediction] = []
        for start in range(0, len(inputs), batch_size):
            logits = self._session.run(None, self._preprocessor(inputs[start : start + batch_size]))[0]
            answers += [to_prediction(row, self.bundle.labels, self.bundle) for row in np.asarray(logits)]
        return answers


class AdapterClassifier:
    """A bundle with branches opened on one execution provider; every input may be for another adapter.

    >>> classifier = AdapterClassifier.open("both")  # doctest: +SKIP
    >>> [a.label for a in classifier.predict(["Call now", "Who was it ?"], ["spam", "trec"])]  # doctest: +SKIP
    ['spam', 'HUM']
    """

    def __init__(self, bundle: Bundle, session: AdapterSession, preprocessor: Preprocessor) -> None:
        self.bundle = bundle
        self.session = session
        self._preprocessor = preprocessor

    @classmethod
    def open(cls, path: Path | str, *, provider: str = "cpu", **options: Any) -> AdapterClassifier:
        """Open a bundle.

        Args:
            path: bundle directory.
            provider: execution provider.
            options: ``threads``, ``bank``, ``rows`` and ``lanes`` of :class:`rmlora_deploy.runtime.AdapterSession`.

        Raises:
            InputError: not a bundle, or damaged.
            ConfigError: the bundle is merged, or embeds.
            ProviderError: the provider is not available.
        """
        bundle = Bundle.open(path)
        _refuse_vectors(bundle)
        return cls(bundle, bundle.adapter_session(provider, **options), bundle.preprocessor())

    def predict(
        self, inputs: Sequence[Any], adapters: AdapterChoice | Sequence[AdapterChoice], *, batch_size: int = 32
    ) -> list[Prediction]:
        """Return an answer for every text or image, in order, with the labels of its own adapter.

        Args:
            inputs: texts; or image paths, encoded images or PIL images.
            adapters: one choice for all inputs, or one for each.
            batch_size: rows run at once.

        Raises:
            InputError: an input or an adapter cannot be used, or the graph gives no usable scores.
            ConfigError: the choices do not fit the inputs.
        """
        choices = resolve_choices(adapters, len(inputs))
        entries = [self.bundle.adapter(choice.name) if choice else self.bundle.manifest for choice in choices]
        answers: list[Prediction] = []
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            arrays = self._preprocessor(inputs[part], lengths=[entry.max_length for entry in entries[part]])
            chosen = [{choice.name: choice.strength} if choice else None for choice in choices[part]]
            rows = self.session.run(arrays, chosen)
            answers += [
                to_prediction(row, entry.labels, self.bundle) for row, entry in zip(rows, entries[part], strict=True)
            ]
        return answers


def _refuse_vectors(bundle: Bundle) -> None:
    if bundle.task.outputs.pools:
        raise ConfigError(
            f"{bundle.path} answers with vectors and classifies nothing: open it with rmlora_deploy.inference.embedder.Embedder."
        )


def to_prediction(logits: np.ndarray, labels: Sequence[str], bundle: Bundle) -> Prediction:
    """Return what a row's ``logits [labels]`` say.

    Raises:
        InputError: they are not as many as the labels, or not finite.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.shape[-1] != len(labels):
        raise InputError(
            f"The graph of {bundle.path} gives {values.shape[-1]} scores for {len(labels)} labels: the bundle is "
            "inconsistent, export it again."
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"The graph of {bundle.path} gives NaN or infinity for this input: its precision ({bundle.precision}) does not "
            "suffice, export it in fp32."
        )
    exponents = np.exp(values - values.max())
    shares = exponents / exponents.sum()
    ranking = tuple((labels[i], float(shares[i])) for i in np.argsort(-shares, kind="stable"))
    return Prediction(*ranking[0], ranking)
