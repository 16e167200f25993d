"""Classifying with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.preprocess import Preprocessor
from rmlora.errors import InputError

__all__ = ["Classifier", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one input."""

    label: str
    probability: float
    ranking: tuple[tuple[str, float], ...]
    """Every label with its probability, likeliest first."""


class Classifier:
    """A bundle opened on one execution provider.

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
            ProviderError: the provider is not available.
        """
        bundle = Bundle.open(path)
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
            answers += [self._answer(row) for row in _softmax(self._checked(logits))]
        return answers

    def _checked(self, logits: Any) -> np.ndarray:
        values = np.asarray(logits, dtype=np.float64)
        if values.shape[-1] != len(self.bundle.labels):
            raise InputError(
                f"The graph of {self.bundle.path} gives {values.shape[-1]} scores for {len(self.bundle.labels)} labels: "
                "the bundle is inconsistent, export it again."
            )
        if not np.isfinite(values).all():
            raise InputError(
                f"The graph of {self.bundle.path} gives NaN or infinity for this input: its precision "
                f"({self.bundle.precision}) does not suffice, export it in fp32."
            )
        return values

    def _answer(self, probabilities: np.ndarray) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")
        ranking = tuple((self.bundle.labels[i], float(probabilities[i])) for i in order)
        return Prediction(*ranking[0], ranking)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))
